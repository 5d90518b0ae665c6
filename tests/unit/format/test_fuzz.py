"""Every parser of bytes from elsewhere, on its corpus and on mutations of it. `python -m tests.fuzz` runs for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fuzz

SEEDS = {target: fuzz.corpus(target) for target in fuzz.TARGETS}
# What a good file of each format is called in the corpus: everything but findings and attacks is taken.
FORMATS = ("safetensors", "gguf", "manifest", "sig")
GOOD = [(t, n) for t in FORMATS for n in SEEDS[t] if not n.startswith(("finding-", "attack-"))]


@pytest.mark.parametrize(("target", "name"), [(t, n) for t, seeds in SEEDS.items() for n in seeds])
def test_the_corpus_holds_in_bounded_memory(target: str, name: str) -> None:
    fuzz.check(target, SEEDS[target][name], memory=True)


@pytest.mark.parametrize(("target", "name"), GOOD)
def test_good_files_are_taken(target: str, name: str) -> None:
    assert fuzz.check(target, SEEDS[target][name])


@pytest.mark.parametrize(("target", "name"), [(t, n) for t in SEEDS for n in SEEDS[t] if n.startswith("finding-")])
def test_what_a_hunt_found_is_refused(target: str, name: str) -> None:
    assert not fuzz.check(target, SEEDS[target][name])


@pytest.mark.parametrize("target", FORMATS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_mutations_are_taken_or_refused(target: str, seed: int) -> None:
    mutated(target, seed)


@pytest.mark.parametrize("target", ["journal", "marker"])
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_a_damaged_journal_or_marker_is_no_error(target: str, seed: int) -> None:
    mutated(target, seed)


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_a_damaged_library_is_pruned_or_left(seed: int) -> None:
    mutated("shared_object", seed)


def mutated(target: str, seed: int) -> None:
    draw, seeds = random.Random(seed), list(SEEDS[target].values())
    fuzz.check(target, fuzz.mutate(target, draw.choice(seeds), draw, seeds))


@given(st.binary(max_size=200), st.sampled_from(FORMATS))
@settings(deadline=None)
def test_bytes_of_no_format_are_refused(body: bytes, target: str) -> None:
    assert not fuzz.check(target, body)


def test_a_wrong_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself can fail: a parser that forgets a tensor, one that crashes, one that reads too far."""
    body = SEEDS["gguf"]["two-tensors"]
    good = fuzz.gguf.parse

    def forgets(*args: object, **words: object) -> object:
        header = good(*args, **words)  # type: ignore[arg-type]
        return type(header)(header.size, header.tensors[::-1], header.metadata, header.version, header.alignment)

    monkeypatch.setattr(fuzz.gguf, "parse", forgets)
    with pytest.raises(fuzz.Finding, match="starts at"):
        fuzz.check("gguf", body)
    monkeypatch.setattr(fuzz.gguf, "parse", lambda *args, **words: 1 // 0)
    with pytest.raises(fuzz.Finding, match="ZeroDivisionError"):
        fuzz.check("gguf", body)
    monkeypatch.setattr(fuzz.gguf, "parse", lambda read, size, path: read(0, size + 1))
    with pytest.raises(fuzz.Finding, match="read of"):
        fuzz.check("gguf", body)


def test_a_hunt_finds_a_planted_fault_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = fuzz.safetensors.parse

    def planted(read: fuzz.safetensors.Read, size: int, *, path: str) -> fuzz.safetensors.Header:
        header = good(read, size, path=path)
        if len(header.tensors) == 1:
            raise KeyError("one tensor")
        return header

    monkeypatch.setattr(fuzz.safetensors, "parse", planted)
    _, _, findings = fuzz.hunt("safetensors", seconds=0.5, seed=0, keep=tmp_path)
    assert any("KeyError" in finding for finding in findings)
    assert list(tmp_path.iterdir())
