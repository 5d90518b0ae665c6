"""Where files are cut: covered once, at rows, and stable when something else in the file changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import ConfigError, IntegrityError
from builder.format.manifest import MAX_CHUNK_BYTES, Tensor
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.weights import split
from tests.models import gguf_model, safetensors_model, write_safetensors

KIB = 1 << 10


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, list[Tensor], int]:
    """(file size, header, tensors with padding between, target)."""
    target = draw(st.integers(64, 4096))
    header = at = draw(st.integers(0, 3 * target))
    tensors = []
    for i in range(draw(st.integers(0, 12))):
        shape = tuple(draw(st.lists(st.integers(0, 70), max_size=3)))
        size = draw(st.sampled_from([1, 2, 4]))
        for n in shape:
            size *= n
        row = size // shape[0] if shape and shape[0] else size
        tensors.append(Tensor(f"t{i}", "X", shape, at, size, row))
        at += size + draw(st.sampled_from([0, 0, 0, 1, 31, 5000]))
    return at, header, tensors, target


@given(layouts())
def test_pieces_cover_the_file_once_in_order_and_stay_small(layout: tuple[int, int, list[Tensor], int]) -> None:
    size, header, tensors, target = layout
    at = 0
    for offset, length in split.cut(size, header, tensors, target):
        assert offset == at
        assert 0 < length <= 1.75 * target
        at += length
    assert at == size


@given(layouts())
def test_large_tensors_start_a_piece_and_are_cut_at_whole_units(layout: tuple[int, int, list[Tensor], int]) -> None:
    size, header, tensors, target = layout
    starts = {offset for offset, _ in split.cut(size, header, tensors, target)} | {size}
    assert header in starts
    for t in tensors:
        if t.size >= target / 4:
            assert t.offset in starts
            unit = split.unit(t, target)
            assert all((s - t.offset) % unit == 0 for s in starts if t.offset <= s < t.offset + t.size)
            if t.row_bytes <= target < t.size and t.shape and t.shape[0] > 1:
                assert unit == t.row_bytes


@given(layouts(), st.integers(1, 5000))
def test_a_longer_header_moves_no_cut_after_it(layout: tuple[int, int, list[Tensor], int], more: int) -> None:
    size, header, tensors, target = layout
    moved = [Tensor(t.name, t.dtype, t.shape, t.offset + more, t.size, t.row_bytes) for t in tensors]
    before = [p for p in split.cut(size, header, tensors, target) if p[0] >= header]
    after = [(o - more, n) for o, n in split.cut(size + more, header + more, moved, target) if o >= header + more]
    assert after == before


def test_the_largest_piece_at_the_largest_target_is_one_the_format_takes() -> None:
    assert split.MAX_TARGET_BYTES * 1.75 <= MAX_CHUNK_BYTES
    assert split.MAX_TARGET_BYTES >= 64 << 20


def test_an_empty_file_has_no_piece() -> None:
    assert split.cut(0, 0, [], 64) == []


def test_a_rest_below_a_quarter_joins_the_piece_before_it() -> None:
    rows = Tensor("t", "U8", (21, 10), 0, 210, 10)
    assert split.cut(210, 0, [rows], 100) == [(0, 100), (100, 110)]
    more = Tensor("t", "U8", (23, 10), 0, 230, 10)
    assert split.cut(230, 0, [more], 100) == [(0, 100), (100, 100), (200, 30)]


def test_a_row_above_the_target_is_cut_along_the_next_axis() -> None:
    experts = Tensor("e", "U8", (2, 8, 50), 0, 800, 400)
    assert split.unit(experts, 100) == 50
    assert split.cut(800, 0, [experts], 100) == [(at, 100) for at in range(0, 800, 100)]


def digests(folder: Path, target: int) -> dict[str, int]:
    """sha256 -> bytes of every piece."""
    found = {}
    for file in split.plan(resolve(ModelRef(str(folder))), chunk_bytes=target).files:
        body = file.file.location.read_bytes()
        for offset, size in file.pieces:
            found[hashlib.sha256(body[offset : offset + size]).hexdigest()] = size
    return found


def new_share(before: dict[str, int], after: dict[str, int]) -> float:
    return sum(n for d, n in after.items() if d not in before) / sum(after.values())


@pytest.fixture
def base(tmp_path: Path) -> dict[str, int]:
    return digests(safetensors_model(tmp_path / "base", layers=8, hidden=128, vocab=4096), 64 * KIB)


def test_new_metadata_reuploads_only_the_header(tmp_path: Path, base: dict[str, int]) -> None:
    other = safetensors_model(tmp_path / "meta", layers=8, hidden=128, vocab=4096, metadata="x" * 200)
    assert new_share(base, digests(other, 64 * KIB)) < 0.005


def test_resharding_reuploads_little(tmp_path: Path, base: dict[str, int]) -> None:
    other = safetensors_model(tmp_path / "shards", layers=8, hidden=128, vocab=4096, shards=3)
    assert new_share(base, digests(other, 64 * KIB)) < 0.02


def test_appended_vocabulary_reuploads_little(tmp_path: Path) -> None:
    for name, vocab in (("a", 4096), ("b", 4160)):
        (tmp_path / name).mkdir()
        body = [("model.embed_tokens.weight", [vocab, 512]), ("model.norm.weight", [512])]
        write_safetensors(tmp_path / name / "model.safetensors", body)
    before, after = digests(tmp_path / "a", 256 * KIB), digests(tmp_path / "b", 256 * KIB)
    assert new_share(before, after) < 0.15  # the header and the last piece of 17


def test_other_seed_reuploads_everything(tmp_path: Path, base: dict[str, int]) -> None:
    other = safetensors_model(tmp_path / "seed", layers=8, hidden=128, vocab=4096, seed=1)
    assert new_share(base, digests(other, 64 * KIB)) > 0.99


def test_modes_and_groups(tmp_path: Path) -> None:
    folder = safetensors_model(tmp_path / "m")
    gguf_model(folder / "other.gguf")
    (folder / "empty.txt").touch()
    plans = {p.file.path: p for p in split.plan(resolve(ModelRef(str(folder)))).files}
    assert [p.mode for p in plans.values()] == ["raw", "raw", "safetensors", "gguf", "raw"]
    assert plans["empty.txt"].pieces == ()
    assert plans["model.safetensors"].pieces[0] == (0, plans["model.safetensors"].header)
    assert {t.group for t in plans["other.gguf"].tensors} == {"embed", "layer.0", "layer.1", "final"}


def test_an_impossible_target_is_refused(tmp_path: Path) -> None:
    snapshot = resolve(ModelRef(str(safetensors_model(tmp_path / "m"))))
    with pytest.raises(ConfigError, match="chunk size of 0 bytes"):
        split.plan(snapshot, chunk_bytes=0)
    with pytest.raises(ConfigError, match="chunk size"):
        split.plan(snapshot, chunk_bytes=split.MAX_TARGET_BYTES + 1)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = safetensors_model(tmp_path / "m")
    with (folder / "model.safetensors").open("r+b") as f:
        f.truncate(5000)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: .*lie outside a file of 5000"):
        split.plan(resolve(ModelRef(str(folder))))
