"""Verify finds every damage and names it; repair mends that and nothing else."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.format.manifest import manifest_key
from builder.stores.base import Stored
from builder.transfer.checksum import Buffer
from builder.weights.listing import ls
from builder.weights.push import PushReport
from builder.weights.repair import repair
from builder.weights.verify import VerifyReport, _mend, verify
from tests.bounds import BOUND_S
from tests.models import gguf_model, safetensors_model
from tests.unit.weights.build import ENGINE, Watched, push, snapshot


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = safetensors_model(tmp_path / "model", layers=3)
    gguf_model(folder / "draft.gguf")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "store")


@pytest.fixture
def pushed(model: Path, store: Watched) -> PushReport:
    return push(model, store)


def check(store: Watched, **options: bool) -> VerifyReport:
    return verify(store, "m", engine=ENGINE, **options)


def test_a_good_store(store: Watched, pushed: PushReport) -> None:
    report = check(store)
    assert report.ok
    assert (report.chunks, report.digest, report.by_size) == (pushed.chunks, pushed.digest, 0)


def test_every_flipped_bit_is_found_and_named(store: Watched, pushed: PushReport) -> None:
    draw = random.Random(1)
    places = list(pushed.manifest.chunks())
    for _ in range(200):
        file, chunk = draw.choice(places)
        at, bit = draw.randrange(chunk.size), 1 << draw.randrange(8)
        path = store.root / chunk.key
        good = path.read_bytes()
        bad = bytearray(good)
        bad[at] ^= bit
        path.write_bytes(bad)
        faults = [f for f in check(store).faults if (f.path, f.start) == (file.path, chunk.offset)]
        assert len(faults) == 1
        assert (faults[0].object, faults[0].end) == (chunk.key, chunk.offset + chunk.size)
        byte = chunk.offset + at
        hit = [t.name for t in file.tensors if t.offset <= byte < t.offset + t.size]
        assert set(hit) <= set(faults[0].tensors)
        assert faults[0].expected == f"sha256 {chunk.sha256}"
        path.write_bytes(good)
    assert check(store).ok


def damage(store: Watched, pushed: PushReport) -> dict[str, str]:
    """One chunk of each kind of damage: key -> what verify says it found."""
    cut, grown, gone, zero, swapped = (c for _, c in list(pushed.manifest.chunks())[:5])
    (store.root / cut.key).write_bytes((store.root / cut.key).read_bytes()[:-1])
    with (store.root / grown.key).open("ab") as f:
        f.write(b"x")
    (store.root / gone.key).unlink()
    (store.root / zero.key).write_bytes(b"")
    (store.root / swapped.key).write_bytes(bytes(swapped.size))
    return {
        cut.key: f"{cut.size - 1} bytes", grown.key: f"{grown.size + 1} bytes", gone.key: "no object", zero.key: "0 bytes",
        swapped.key: "sha256 ",
    }  # fmt: skip


def test_every_kind_of_damage_is_reported_at_once(store: Watched, pushed: PushReport) -> None:
    want = damage(store, pushed)
    report = check(store)
    found = {f.object: f.found for f in report.faults}
    assert set(found) == set(want)
    assert all(found[key].startswith(words) for key, words in want.items())
    error = report.error()
    assert error.exit_code == 3
    assert "5 of" in error.message
    assert error.where["faults"][0]["object"] in want
    assert error.hint == f"run `builder weights repair m --from SOURCE --store {store.url}`"


def test_the_repair_command_names_ref_store_endpoint_and_hub(store: Watched, pushed: PushReport) -> None:
    store.endpoint_url = "http://user:pw@host:9000"  # type: ignore[attr-defined]
    hub = replace(pushed.manifest, source="hf://org/m", revision="abc")
    assert _mend(store, "m@abc", hub) == (
        f"builder weights repair m@abc --from hf://org/m --revision abc --store {store.url} --endpoint-url http://host:9000"
    )


class Wire:
    """The store's folder as a source, with `seen` between it and its reader."""

    def __init__(self, store: Watched, seen: Callable[[str, Buffer], Buffer]) -> None:
        self.url, self._store, self._seen = store.url, store, seen

    def read(self, key: str, *, limit: int) -> Buffer | None:
        body = self._store.get(key, limit)
        return None if body is None else self._seen(key, body)


def test_many_chunks_that_cannot_be_read_are_one_line(store: Watched, pushed: PushReport) -> None:
    together = threading.Barrier(2, timeout=BOUND_S)

    def refuse(key: str, body: Buffer) -> Buffer:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()
        raise RemoteError(f"{key}: 403", where={"status": 403})

    store.source = lambda: Wire(store, refuse)  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(RemoteError, match=r"\Achunks/\S+: 403 \(and \d+ more chunks?\)\Z"):
        check(store)


def test_by_head_sizes_are_compared_and_said_to_be_only_that(store: Watched, pushed: PushReport) -> None:
    want = damage(store, pushed)
    report = check(store, remote=True)
    assert {f.object for f in report.faults} == {key for key, words in want.items() if not words.startswith("sha256")}
    assert (report.by_digest, report.by_size) == (0, report.chunks - len(report.faults))


def test_by_head_the_stores_own_digests_are_compared(store: Watched, pushed: PushReport) -> None:
    good, wrong_sha, wrong_crc = (c for _, c in list(pushed.manifest.chunks())[:3])
    words = {
        good.key: Stored(good.size, good.sha256, good.crc64nvme),
        wrong_sha.key: Stored(wrong_sha.size, "0" * 64),
        wrong_crc.key: Stored(wrong_crc.size, "", "0" * 16),
    }
    plain = store.stat
    store.stat = lambda key: words.get(key) or plain(key)  # type: ignore[method-assign]
    report = check(store, remote=True)
    assert {f.object: f.found for f in report.faults} == {
        wrong_sha.key: "sha256 " + "0" * 64,
        wrong_crc.key: "crc64nvme " + "0" * 16,
    }
    assert (report.by_digest, report.by_size) == (1, report.chunks - 3)


def test_a_wire_that_errs_once_is_not_a_bad_object(store: Watched, pushed: PushReport) -> None:
    asked: list[str] = []

    def zeros_at_first(key: str, body: Buffer) -> Buffer:
        asked.append(key)
        return bytes(len(body)) if asked.count(key) == 1 else body

    store.source = lambda: Wire(store, zeros_at_first)  # type: ignore[assignment,method-assign,return-value]
    assert check(store).ok
    assert len(asked) == 2 * pushed.chunks


def test_a_store_that_cannot_be_read_is_not_a_bad_store(store: Watched, pushed: PushReport) -> None:
    def refuse(key: str, body: Buffer) -> Buffer:
        raise RemoteError(f"{key}: 403", where={"status": 403})

    store.source = lambda: Wire(store, refuse)  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(RemoteError, match="403"):
        check(store)


def test_missing_and_damaged_manifests_are_clear_errors(store: Watched, pushed: PushReport, model: Path) -> None:
    path = store.root / manifest_key(pushed.digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(IntegrityError, match=f"expected {pushed.digest}"):
        check(store)
    assert "expected" in next(iter(ls(store))).error
    path.unlink()
    for act in (lambda: check(store), lambda: repair(store, "m", snapshot(model), engine=ENGINE)):
        with pytest.raises(IntegrityError, match=r"manifest .* is not there"):
            act()
    with pytest.raises(IntegrityError, match="no model 'other'"):
        verify(store, "other", engine=ENGINE)


def test_repair_puts_only_what_is_bad(store: Watched, pushed: PushReport, model: Path) -> None:
    want = damage(store, pushed)
    store.written.clear()
    dry = repair(store, "m", snapshot(model), engine=ENGINE, dry_run=True)
    assert store.written == []
    report = repair(store, "m", snapshot(model), engine=ENGINE)
    assert sorted(store.written) == sorted(want) == list(report.objects) == list(dry.objects)
    assert check(store).ok
    assert repair(store, "m", snapshot(model), engine=ENGINE).repaired_chunks == 0


def test_repair_refuses_a_source_that_differs_and_mends_the_rest(store: Watched, pushed: PushReport, model: Path) -> None:
    one, two = pushed.manifest.file("draft.gguf").chunks[1], pushed.manifest.file("model.safetensors").chunks[1]
    for chunk in (one, two):
        (store.root / chunk.key).write_bytes(b"bad")
    with (model / "draft.gguf").open("r+b") as f:
        f.seek(one.offset)
        f.write(b"other")
    with pytest.raises(IntegrityError, match=r"1 of 2 bad chunks could not be repaired") as caught:
        repair(store, "m", snapshot(model), engine=ENGINE)
    assert "the source's draft.gguf differs at bytes" in caught.value.message
    assert [f.object for f in check(store).faults] == [one.key]


def test_repair_from_a_source_that_lacks_the_file(store: Watched, pushed: PushReport, model: Path) -> None:
    (store.root / pushed.manifest.file("draft.gguf").chunks[0].key).unlink()
    (model / "draft.gguf").unlink()
    with pytest.raises(IntegrityError, match=r"the source has no draft\.gguf"):
        repair(store, "m", snapshot(model), engine=ENGINE)


def test_an_equal_chunk_mends_from_another_place(store: Watched, tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(b"same")
    (chunk,) = {c for _, c in push(folder, store).manifest.chunks()}
    (store.root / chunk.key).write_bytes(b"evil")
    assert [f.path for f in check(store).faults] == ["a.bin", "b.bin"]
    (folder / "a.bin").unlink()
    assert repair(store, "m", snapshot(folder), engine=ENGINE).repaired_chunks == 1
    assert check(store).ok


def test_ls(store: Watched, pushed: PushReport, model: Path) -> None:
    shutil.copytree(model, model.parent / "two")
    push(model.parent / "two", store, name="two")
    first, second = ls(store)
    assert (first.ref, first.digest, first.chunks) == ("m", pushed.digest, pushed.chunks)
    assert (second.ref, second.source, second.error) == ("two", "two", "")
