"""What a build says of image.stubs, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import resources
from builder.config.load import load, parse
from builder.errors import ConfigError
from builder.image import stubs

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


def test_an_image_for_cpus_has_none_to_replace(tmp_path: Path) -> None:
    text = (resources.folder("images") / "transformers-cpu" / "builder.yaml").read_text()
    (tmp_path / "builder.yaml").write_text(text.replace("image:\n", "image:\n  stubs: [curand]\n", 1))
    with pytest.raises(ConfigError, match=r'image\.stubs: expected \[\] where image\.cuda is "none"'):
        load(tmp_path)
