"""What a build says of image.stubs, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder import resources
from builder.config.load import load, parse
from builder.errors import ConfigError
from builder.image import locked, stubs
from builder.pipeline import render_image
from builder.slim import stubs as table

TEXT = (resources.folder("images") / "llama3-8b-transformers" / "builder.yaml").read_text()


def described(names: str, *, engine: str = "transformers", version: str = "5.23.0") -> list[str]:
    text = TEXT.replace('{name: transformers, version: "5.23.0"}', f'{{name: {engine}, version: "{version}"}}')
    text = text.replace('cuda: "13"', f'cuda: "13"\n  stubs: {names}')
    return stubs.warnings(parse(text.encode(), "builder.yaml"))


def test_a_proven_set_and_a_part_of_it_are_quiet() -> None:
    (proven,) = [one for one in stubs.PROVEN if one.engine == "transformers"]
    assert described(f"[{', '.join(sorted(proven.stubs))}]") == []
    assert described("[curand]") == []
    assert described("[]") == []


def test_another_release_is_a_warning_that_names_what_is_untried() -> None:
    (said,) = described("[curand, cufft]", version="5.22.0")
    assert said.startswith("image.stubs: curand, cufft untried with transformers 5.22.0")


def test_only_what_goes_beyond_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs, "PROVEN", (stubs.Proven("transformers", "5.23.0", frozenset({"curand"}), "a test"),))
    assert described("[curand]") == []
    assert described("[curand, cufft]")[0].startswith("image.stubs: cufft untried")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_that_opens_a_group_needs_nccl(engine: str) -> None:
    found = described("[nccl, curand]", engine=engine)
    assert any("stops on a GPU" in one for one in found)
    assert not any("stops on a GPU" in one for one in described("[curand]", engine=engine))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[cublas]", r"builder.yaml:20:11: image.stubs\[0\]: expected 'cufft', 'cufile'"),
        ("[curand, curand]", "names one twice"),
        ("curand", "expected a list"),
    ],
)
def test_other_names_are_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        described(line)


def test_a_library_that_no_wheel_brings_is_refused(tmp_path: Path) -> None:
    shutil.copytree(resources.folder("images") / "llama3-8b-transformers", tmp_path / "image")
    folder, text = tmp_path / "image", TEXT.replace('cuda: "13"', 'cuda: "13"\n  stubs: [curand, nvshmem]')
    (folder / "builder.yaml").write_text(text)
    loaded, lock = load(folder), folder / "requirements.lock"
    assert "transformers" in render_image(loaded, "")
    lock.write_text("".join(line for line in lock.read_text().splitlines(True) if not line.startswith("nvidia-nvshmem")))
    with pytest.raises(ConfigError, match=r"image\.stubs: nvshmem: no wheel") as caught:
        render_image(loaded, "")
    assert caught.value.hint == "take nvshmem out of image.stubs"


def test_the_names_and_wheels_are_those_of_the_locks() -> None:
    """What torch asks for today: each stub has its wheel in the lock of an image for CUDA 13."""
    found = load(resources.folder("images") / "llama3-8b-transformers")
    image = found.spec.image.model_copy(update={"stubs": table.NAMES})
    stubs.require(image, locked.read(found.folder, found.spec))


def test_the_page_and_the_record_name_the_same_sets() -> None:
    page = (Path(__file__).parents[3] / "docs" / "stubs.md").read_text()
    for one in stubs.PROVEN:
        but = sorted(set(table.NAMES) - one.stubs)
        wanted = f"all but {', '.join(but)}" if but else "all nine"
        assert f"| {one.engine} {one.version}, torch 2.13.0, CUDA 13 | {wanted} |" in page
