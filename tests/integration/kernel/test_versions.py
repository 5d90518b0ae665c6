"""Baked by containerd 1.6, 1.7 and 2.x, started by the same three: a node's version need not be the baker's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.cli.common import cache_folder
from builder.errors import BuilderError
from builder.node import containerd, lent
from builder.node.bake import BakePlan, bake
from builder.node.inputs import ImageInput
from builder.node.layout import find_image, open_layout
from builder.node.programs import Programs, find
from builder.node.verify import VerifyPlan, verify
from tests.conftest import missing
from tests.disks import NAME, RUN, SIZE

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_stays")]
SERIES = ("1.6", "1.7", "2")


@pytest.fixture(scope="module")
def versions() -> tuple[Programs, ...]:
    """One containerd of each series, the newest that scripts/containerds has unpacked."""
    home = cache_folder("containerd")
    found = [sorted(home.glob(f"{series}.*/containerd")) if home else [] for series in SERIES]
    if not all(found):
        missing("containerds", f"{home} lacks a containerd of {', '.join(SERIES)} (scripts/containerds)")
    return tuple(find(paths[-1]) for paths in found)


def test_a_garbage_collection_does_not_disturb_the_look_at_the_layers(
    versions: tuple[Programs, ...], layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is under way when a bake asks where the layers are: dropping blobs starts it."""
    asked = containerd.Containerd.ctr

    def collecting(daemon: containerd.Containerd, *words: str | Path, **rest: float) -> str:
        if words[:2] == ("snapshots", "mounts"):
            daemon.collect()
        return asked(daemon, *words, **rest)

    monkeypatch.setattr(containerd.Containerd, "ctr", collecting)
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(layout),), size=SIZE, programs=versions[-1]))
    assert len(made.images[0]["unpacked"]) == 2


@pytest.mark.parametrize("number", range(len(SERIES)), ids=SERIES)
def test_layers_are_read_where_they_lie_and_stay_there(
    number: int, versions: tuple[Programs, ...], layout: Path, tmp_path: Path
) -> None:
    """The store has links while the image is unpacked, of which none stays; the files that they lead to do."""
    before = {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    root, store = tmp_path / "root", tmp_path / "root/io.containerd.content.v1.content/blobs/sha256"
    with open_layout(layout) as source, containerd.containerd(root, tmp_path, programs=versions[number], patient=True) as own:
        image = find_image(source)
        own.load(source, image, copied=False)
        kept = {blob.digest[7:] for blob in image.blobs()}
        linked = {path.name for path in store.iterdir() if path.is_symlink()}
        assert {path.name for path in store.iterdir()} >= kept
        assert linked == {layer.digest[7:] for layer in image.layers}
        assert set(image.chain_ids) == set(own.snapshots())
        with pytest.raises(BuilderError, match="did not let go of 2 layers"):
            lent.expect_none(root)
        own.drop_layers(image)
        own.collect()
        assert not linked & {path.name for path in store.iterdir()}
        lent.expect_none(root)
    assert {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()} == before


def test_layers_of_an_archive_are_copied(versions: tuple[Programs, ...], layout: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "image"), "tar", layout)
    root, store = tmp_path / "root", tmp_path / "root/io.containerd.content.v1.content/blobs/sha256"
    archive, own = open_layout(tmp_path / "image.tar"), containerd.containerd(root, tmp_path, programs=versions[-1])
    with archive as source, own as daemon:
        image = find_image(source)
        daemon.load(source, image, copied=False)
        assert {path.name for path in store.iterdir() if not path.is_symlink()} >= {b.digest[7:] for b in image.blobs()}


@pytest.mark.parametrize("number", range(len(SERIES)), ids=SERIES)
def test_what_one_version_bakes_every_version_starts(
    number: int, versions: tuple[Programs, ...], layout: Path, tmp_path: Path
) -> None:
    baker = versions[number]
    made = bake(BakePlan(tmp_path / "o.img", images=(ImageInput(layout),), size=SIZE, programs=baker))
    assert made.containerd == baker.version
    report = verify(VerifyPlan(made.path, run=RUN, programs=versions))
    assert [one.version for one in report.opened] == [version.version for version in versions]
    assert [run.output for run in report.runs] == ["10001\nsecond layer\n"] * len(versions)
    for one in report.opened:
        pins = "1.6" if one.version.startswith("1.6.") else "pinned"  # 1.6 has no word for it
        assert pins in one.checks[f"CRI {NAME}"]
