"""What is not built again: only the very image that the engine still has under its name, of the same inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from builder.image import standing
from builder.image.backends.base import Backend
from builder.image.built import BuiltImage, Capabilities

BUILT = BuiltImage(
    "r/m:1", "sha256:" + "a" * 64, 1000, ("sha256:l1", "sha256:l2"), id="sha256:" + "a" * 64, base="b", base_digest="d"
)


@dataclasses.dataclass
class Engine:
    """Has one image, or none."""

    here: BuiltImage | None = BUILT
    capabilities: Capabilities = dataclasses.field(default_factory=lambda: Capabilities("buildx", "1", archives=True))

    def inspect(self, reference: str) -> BuiltImage | None:
        return self.here if self.here and self.here.reference == reference else None


def engine(**changes: Any) -> Backend:
    return cast("Backend", Engine(**changes))


def test_what_was_built_is_recalled_as_it_was(tmp_path: Path) -> None:
    standing.remember(tmp_path / "new", "k", BUILT)
    found = standing.recall(tmp_path / "new", "k", engine())
    assert found is not None
    assert found.unchanged
    assert dataclasses.replace(found, unchanged=False, backend=None) == BUILT


@pytest.mark.parametrize(
    "here",
    [None, dataclasses.replace(BUILT, id="sha256:" + "b" * 64), dataclasses.replace(BUILT, reference="r/other:1")],
    ids=["gone", "another image under the name", "another name"],
)
def test_an_image_that_is_not_there_any_more_is_built_again(here: BuiltImage | None, tmp_path: Path) -> None:
    standing.remember(tmp_path, "k", BUILT)
    assert standing.recall(tmp_path, "k", engine(here=here)) is None


def test_an_image_over_its_budget_is_built_again_and_so_refused(tmp_path: Path) -> None:
    standing.remember(tmp_path, "k", BUILT)
    assert standing.recall(tmp_path, "k", engine(), 1000) is not None
    assert standing.recall(tmp_path, "k", engine(), 999) is None


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"reference": "r/m:1", "surprise": 1}', "not JSON"])
def test_a_damaged_note_is_no_note(body: str, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text(body)
    assert standing.recall(tmp_path, "k", engine()) is None


def test_without_a_memory_everything_is_built(tmp_path: Path) -> None:
    standing.remember(None, "k", BUILT)
    assert standing.recall(None, "k", engine()) is None
    assert standing.recall(tmp_path, "k", engine()) is None


def test_an_image_of_several_platforms_is_not_noted(tmp_path: Path) -> None:
    standing.remember(tmp_path, "k", dataclasses.replace(BUILT, platforms={"linux/amd64": "sha256:x"}))
    assert list(tmp_path.iterdir()) == []


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    standing.remember(tmp_path / "file", "k", BUILT)


def test_everything_that_goes_in_is_in_the_key() -> None:
    first = standing.key("context", "name", "base", engine())
    others = [
        standing.key("other", "name", "base", engine()),
        standing.key("context", "other", "base", engine()),
        standing.key("context", "name", "other", engine()),
        standing.key("context", "name", "base", engine(capabilities=Capabilities("buildah", "1"))),
        standing.key("context", "name", "base", engine(capabilities=Capabilities("buildx", "2"))),
        standing.key("contex", "tname", "base", engine()),
    ]
    assert len({first, *others}) == 7
