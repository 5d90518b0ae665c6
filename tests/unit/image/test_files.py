"""What lies in each layer: shares that add up, and what later layers hide."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from builder.image import files
from builder.image.archive import open_image
from builder.image.files import Entry, hidden
from builder.image.stream import BLOCK
from tests.images import PACKERS, Files, image, layer


def entries(*names: str) -> list[Entry]:
    """A name that ends in / is a folder."""
    return [Entry(name.rstrip("/"), "dir" if name.endswith("/") else "file", 1) for name in names]


def gone(*layers: list[Entry], links: dict[str, str] | None = None) -> list[str]:
    return [f"{number}:{layers[number][index].path}" for number, index in sorted(hidden(layers, links))]


def test_a_file_that_is_replaced_or_removed_is_hidden() -> None:
    assert gone(entries("a", "b", "c"), entries("b", ".wh.c")) == ["0:b", "0:c"]


def test_a_removed_folder_hides_all_in_it() -> None:
    assert gone(entries("d/", "d/e/", "d/e/f", "df"), entries(".wh.d")) == ["0:d", "0:d/e", "0:d/e/f"]


def test_an_emptied_folder_hides_what_lower_layers_had_in_it_and_no_more() -> None:
    assert gone(entries("d/", "d/old"), entries("d/", "d/.wh..wh..opq", "d/new")) == ["0:d/old"]
    assert gone(entries("x"), entries(".wh..wh..opq", "y")) == ["0:x"]


def test_a_file_in_place_of_a_folder_and_the_other_way_round() -> None:
    assert gone(entries("d/", "d/f", "e"), entries("d", "e/")) == ["0:d", "0:d/f", "0:e"]


def test_folders_are_merged() -> None:
    assert gone(entries("d/", "d/a"), entries("d/", "d/b")) == []


def test_what_a_layer_removes_and_then_has_again_is_there() -> None:
    assert gone(entries("a"), entries(".wh.a", "a")) == ["0:a"]
    assert gone(entries("a"), entries(".wh.a"), entries("a")) == ["0:a"]


def test_of_two_entries_of_one_layer_the_last_is_there() -> None:
    layers = [entries("a", "a")]
    assert hidden(layers) == {(0, 0)}


def test_a_path_through_a_link_of_the_root_is_its_targets() -> None:
    assert gone(entries("usr/lib/x"), entries("lib/.wh.x"), links={"lib": "usr/lib"}) == ["0:usr/lib/x"]
    assert gone(entries("usr/lib/x"), entries("lib/.wh.x")) == []


def contents(path: Path) -> files.Contents:
    with open_image(path) as found:
        return files.read(found, found.layers[0])


def several() -> Files:
    noise = random.Random(5)
    return {
        "noise": noise.randbytes(200_000),
        "text": b"all the same " * 20_000,
        **{f"small/{n}": noise.randbytes(500) for n in range(200)},
        "empty": b"",
    }


@pytest.mark.parametrize("packed", PACKERS)
def test_shares_add_up_to_the_layer(packed: str, tmp_path: Path) -> None:
    found = contents(image(tmp_path / "i", several(), packed=packed))
    assert sum(one.packed for one in found.entries) == found.packed
    assert found.estimated == (packed == "")
    assert found.packed < 400_000
    if packed:
        assert found.packed == found.blob.size
    share = {one.path: one.packed for one in found.entries}
    assert share["text"] < 0.02 * share["noise"]  # compresses well, though it is larger
    assert share["noise"] > 0.6 * found.packed
    assert share["empty"] == 0


def test_small_files_share_by_size(tmp_path: Path) -> None:
    noise = random.Random(6)
    found = contents(image(tmp_path / "i", {"a": noise.randbytes(1000), "b": noise.randbytes(3000)}))
    a, b = (one.packed for one in found.entries)
    assert b == pytest.approx(3 * a, abs=8)


def test_many_small_files_are_packed_in_pieces(tmp_path: Path) -> None:
    names = {f"{n}": random.Random(n).randbytes(50_000) for n in range(2 * BLOCK // 50_000)}
    found = contents(image(tmp_path / "i", names))
    assert max(one.packed for one in found.entries) < 1.1 * min(one.packed for one in found.entries)


@pytest.mark.parametrize("tar", [layer({}), layer({"a": b""}), layer({}, folders=["d"])])
def test_a_layer_without_bytes(tar: bytes, tmp_path: Path) -> None:
    found = contents(image(tmp_path / "i", tar))
    assert found.packed == found.blob.size > 0
    assert sum(one.packed for one in found.entries) in (0, found.packed)


def test_records_are_kept_whatever_their_size(tmp_path: Path) -> None:
    names = {
        "opt/venv/lib/python3.11/site-packages/a-1.dist-info/RECORD": b"a.py,,\n" * 20_000,
        "var/lib/dpkg/info/libc6:amd64.list": b"/lib/x\n",
        "opt/builder/layers/torch.json": b"{}",
        "opt/builder/smoke.json": b"{}",
        "etc/RECORD": b"x",
    }
    found = contents(image(tmp_path / "i", layer(names, links={"lib": "usr/lib"})))
    assert found.records == {name: data for name, data in names.items() if name not in ("opt/builder/smoke.json", "etc/RECORD")}
    assert found.links == {"lib": "usr/lib"}
