"""Restore: byte for byte, once, resumable, and never half visible."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import Chunk, File
from builder.format.volume import JOURNAL, MANIFEST, MARKER, lock_file, marker_digest, partial_dir
from builder.transfer.buffers import WINDOW_BYTES
from builder.transfer.restore import RestoreReport, restore
from builder.transfer.retry import Policy, RetryingSource, retrying
from builder.transfer.source import FolderSource, Source, stream
from tests.unit.transfer.build import DictSource, Model, model, random_model


def impatient(source: Source) -> RetryingSource:
    """Tries as often as in use, without the pauses."""
    return retrying(source, Policy(), sleep=lambda s: None)


def leftovers(folder: Path) -> list[str]:
    """What a restore of `folder` has left beside it."""
    return sorted(p.name for p in folder.parent.iterdir() if p.name != folder.name and p.name.startswith("."))


names = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.(bin|safetensors|json)", fullmatch=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(names, st.binary(max_size=300) | st.just(b"same" * 50), min_size=1, max_size=6),
    chunk_bytes=st.integers(1, 120),
    concurrency=st.integers(1, 5),
    inline=st.booleans(),
)
def test_any_model_comes_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], chunk_bytes: int, concurrency: int, inline: bool
) -> None:
    built = model(files, chunk_bytes=chunk_bytes, small=[p for p in files if inline and p.endswith("json")])
    folder = tmp_path_factory.mktemp("r") / "model"
    source = DictSource(built.objects)
    report = restore(built.manifest, impatient(source), folder, concurrency=concurrency)
    assert built.same(folder)
    assert marker_digest(folder) == built.manifest.digest
    assert (folder / MANIFEST).read_bytes() == built.manifest.to_bytes()
    assert leftovers(folder) == []
    assert len(source.reads) == len(set(source.reads)) == report.fetched_chunks
    assert report.fetched_bytes == sum(len(built.objects[key]) for key in source.reads)


def test_a_second_restore_reads_nothing(tmp_path: Path) -> None:
    built = random_model()
    source = DictSource(built.objects)
    restore(built.manifest, source, tmp_path / "m")
    before = len(source.reads)
    report = restore(built.manifest, source, tmp_path / "m")
    assert len(source.reads) == before
    assert (report.fetched_chunks, report.reused_bytes) == (0, built.manifest.size)


def test_modes_are_fixed_whatever_the_umask(tmp_path: Path) -> None:
    built = model({"a/b/w.bin": b"x" * 10})
    old = os.umask(0o077)
    try:
        restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    finally:
        os.umask(old)
    assert (tmp_path / "m/a/b/w.bin").stat().st_mode & 0o777 == 0o644
    assert {(tmp_path / "m" / d).stat().st_mode & 0o777 for d in ("", "a", "a/b", ".builder")} == {0o755}


def test_a_folder_source_is_read_without_sha256_and_a_remote_one_with_it(tmp_path: Path) -> None:
    """A chunk forged to keep its CRC64NVME: 0^n of another content cannot be made here, so the check itself is watched."""
    built = random_model(files=1, size=3000)
    wrong_sha = {c.key: built.objects[c.key] for c in built.manifest.files[0].chunks}
    first = built.manifest.files[0].chunks[0]
    forged = Chunk("0" * 64, first.offset, first.size, first.crc64nvme)
    file = built.manifest.files[0]
    files = (File(file.path, file.size, file.sha256, file.crc64nvme, file.mode, 0, (forged, *file.chunks[1:]), file.tensors),)
    manifest = type(built.manifest)("m", "", "", "", files, tuple(c.sha256 for c in files[0].chunks))
    wrong_sha[forged.key] = built.objects[first.key]
    with pytest.raises(IntegrityError, match="sha256"):
        restore(manifest, impatient(DictSource(wrong_sha)), tmp_path / "remote")
    store = Model(manifest, {}, wrong_sha).store(tmp_path / "store")
    restore(manifest, FolderSource(store), tmp_path / "local")
    with pytest.raises(IntegrityError, match="sha256"):
        restore(manifest, FolderSource(store), tmp_path / "audited", sha256=True)


def test_memory_holds_one_chunk_per_worker(tmp_path: Path) -> None:
    """Chunks handed out and not yet written, counted where they are made."""
    built = random_model(files=1, size=60_000)
    lock, flying, peak = threading.Lock(), 0, 0

    def taken(key: str) -> None:
        nonlocal flying, peak
        with lock:
            flying += 1
            peak = max(peak, flying)

    def written(file: File, chunk: Chunk) -> None:
        nonlocal flying
        with lock:
            flying -= 1

    restore(built.manifest, DictSource(built.objects, taken), tmp_path / "m", concurrency=3, on_chunk=written)
    assert flying == 0
    assert peak <= 3


def test_on_chunk_names_every_place_after_its_bytes_are_there(tmp_path: Path) -> None:
    built = model({"a.bin": b"x" * 30, "b.bin": b"x" * 20 + b"y" * 5}, chunk_bytes=10)
    seen: list[tuple[str, int]] = []
    partial = partial_dir(tmp_path / "m")

    def on_chunk(file: File, chunk: Chunk) -> None:
        body = (partial / file.path).read_bytes()[chunk.offset : chunk.offset + chunk.size]
        assert body == built.files[file.path][chunk.offset : chunk.offset + chunk.size]
        seen.append((file.path, chunk.offset))

    source = DictSource(built.objects)
    restore(built.manifest, source, tmp_path / "m", on_chunk=on_chunk)
    assert sorted(seen) == [("a.bin", 0), ("a.bin", 10), ("a.bin", 20), ("b.bin", 0), ("b.bin", 10), ("b.bin", 20)]
    assert len(source.reads) == 2, "the chunk at five places is fetched once"


def test_the_first_layer_is_timed(tmp_path: Path) -> None:
    built = random_model(files=1, size=20_000)
    at: list[float] = []

    def clock() -> float:
        at.append(len(at))
        return at[-1]

    report = restore(built.manifest, DictSource(built.objects), tmp_path / "m", concurrency=1, clock=clock)
    assert report.first_layers_s is not None
    assert 0 < report.first_layers_s < report.seconds
    plain = model({"w.bin": b"123"})
    assert restore(plain.manifest, DictSource(plain.objects), tmp_path / "p").first_layers_s is None


# Stopped and started again


class Stop(BaseException):
    """As abrupt as KeyboardInterrupt."""


@pytest.mark.parametrize("stop_at", [1, 7, 40, 99])
def test_a_rerun_fetches_only_what_is_missing(tmp_path: Path, stop_at: int) -> None:
    built = random_model()
    folder = tmp_path / "m"
    source = DictSource(built.objects)

    def stop(file: File, chunk: Chunk) -> None:
        if len(source.reads) >= stop_at:
            raise Stop

    with pytest.raises(Stop):
        restore(built.manifest, source, folder, concurrency=1, on_chunk=stop)
    assert not folder.exists()
    again = DictSource(built.objects)
    report = restore(built.manifest, again, folder)
    assert built.same(folder)
    assert len(again.reads) == 100 - stop_at
    assert report.reused_bytes == stop_at * 1000
    assert report.fetched_bytes + report.reused_bytes == built.manifest.size


def interrupted(tmp_path: Path, built: Model, at: int = 50) -> Path:
    """A folder whose restore stopped after `at` chunks."""
    source = DictSource(built.objects)

    def stop(file: File, chunk: Chunk) -> None:
        if len(source.reads) >= at:
            raise Stop

    with pytest.raises(Stop):
        restore(built.manifest, source, tmp_path / "m", concurrency=1, on_chunk=stop)
    return tmp_path / "m"


def test_a_journaled_chunk_whose_pages_were_lost_is_fetched_again(tmp_path: Path) -> None:
    """What a power failure leaves: the record is there, the bytes are zero."""
    built = random_model()
    folder = interrupted(tmp_path, built)
    with (partial_dir(folder) / "part-0.safetensors").open("r+b") as file:
        file.seek(3000)
        file.write(bytes(2000))
    source = DictSource(built.objects)
    restore(built.manifest, source, folder)
    assert len(source.reads) == 52
    assert built.same(folder)


@pytest.mark.parametrize("damage", ["torn", "garbage", "empty", "gone"])
def test_a_damaged_journal_costs_bytes_not_correctness(tmp_path: Path, damage: str) -> None:
    built = random_model()
    folder = interrupted(tmp_path, built)
    journal = partial_dir(folder) / JOURNAL
    body = journal.read_bytes()
    if damage == "gone":
        journal.unlink()
    else:
        journal.write_bytes({"torn": body[:-30], "garbage": os.urandom(500), "empty": b""}[damage])
    source = DictSource(built.objects)
    restore(built.manifest, source, folder)
    assert len(source.reads) == (51 if damage == "torn" else 100)
    assert built.same(folder)


def test_another_version_half_written_under_the_name_is_discarded(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, random_model(seed=1))
    built = random_model(seed=2)
    source = DictSource(built.objects)
    restore(built.manifest, source, folder)
    assert len(source.reads) == 100
    assert built.same(folder)


def test_a_stop_between_marker_and_rename_needs_no_fetch(tmp_path: Path) -> None:
    built = random_model()
    restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    (tmp_path / "m").rename(partial_dir(tmp_path / "m"))
    source = DictSource(built.objects)
    restore(built.manifest, source, tmp_path / "m")
    assert source.reads == []
    assert built.same(tmp_path / "m")


# What is already there


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    built = random_model()
    restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    assert built.same(tmp_path / "m")


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/mine.txt").write_text("keep")
    built = random_model()
    with pytest.raises(ConfigError, match="not empty") as caught:
        restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    assert caught.value.hint
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["mine.txt"]
    assert leftovers(tmp_path / "m") == []


def test_another_version_is_named(tmp_path: Path) -> None:
    one, two = random_model(seed=1), random_model(seed=2)
    restore(one.manifest, DictSource(one.objects), tmp_path / "m")
    with pytest.raises(ConfigError, match=one.manifest.digest):
        restore(two.manifest, DictSource(two.objects), tmp_path / "m")
    assert one.same(tmp_path / "m")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file")
    built = random_model()
    with pytest.raises(ConfigError, match="not a folder"):
        restore(built.manifest, DictSource(built.objects), tmp_path / "m")


@pytest.mark.parametrize("damage", ["missing", "short", "unmarked"])
def test_a_marked_folder_that_lost_something_is_not_taken_for_complete(tmp_path: Path, damage: str) -> None:
    built = random_model()
    restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    victim = tmp_path / "m/part-1.safetensors"
    if damage == "missing":
        victim.unlink()
    elif damage == "short":
        os.truncate(victim, 49_999)
    else:
        (tmp_path / "m" / MARKER).unlink()
    with pytest.raises(IntegrityError, match="part-1" if damage != "unmarked" else "marker") as caught:
        restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    assert "repair" in caught.value.hint


# Faults


def flip(built: Model, chunk: Chunk) -> dict[str, bytes]:
    body = bytearray(built.objects[chunk.key])
    body[len(body) // 2] ^= 1
    return {**built.objects, chunk.key: bytes(body)}


def test_every_bad_chunk_is_named_at_once(tmp_path: Path) -> None:
    built = random_model()
    chunks = [built.manifest.files[0].chunks[3], built.manifest.files[1].chunks[7]]
    objects = dict(built.objects)
    for chunk in chunks:
        objects |= {chunk.key: flip(built, chunk)[chunk.key]}
    missing = built.manifest.files[1].chunks[20]
    del objects[missing.key]
    source = DictSource(objects)
    with pytest.raises(IntegrityError) as caught:
        restore(built.manifest, impatient(source), tmp_path / "m")
    error = caught.value
    assert "3 of 100 chunks" in error.message
    for n, chunk in ((0, chunks[0]), (1, chunks[1]), (1, missing)):
        assert f"part-{n}.safetensors, tensors layers.{chunk.offset // 1000}.w, bytes [{chunk.offset}, " in error.message
        assert chunk.key in error.message
    assert len(error.where["faults"]) == 3
    assert error.exit_code == 3
    assert not (tmp_path / "m").exists()
    assert source.reads.count(chunks[0].key) == 3, "wrong bytes are read again, in case it was the wire"
    mended = DictSource(built.objects)
    restore(built.manifest, mended, tmp_path / "m")
    assert len(mended.reads) == 3, "all good chunks were kept"


def test_wrong_bytes_on_the_wire_are_read_again(tmp_path: Path) -> None:
    built = random_model()
    seen: set[str] = set()

    def once(key: str) -> bytes | None:
        if key in seen:
            return None
        seen.add(key)
        return b"x" * len(built.objects[key])

    restore(built.manifest, impatient(DictSource(built.objects, once)), tmp_path / "m")
    assert built.same(tmp_path / "m")


@pytest.mark.parametrize("body", [b"", b"x" * 999, b"x" * 1001], ids=["empty", "short", "long"])
def test_a_body_of_another_size_is_integrity(tmp_path: Path, body: bytes) -> None:
    built = random_model()
    bad = built.manifest.files[0].chunks[0].key
    source = DictSource({**built.objects, bad: body})
    with pytest.raises(IntegrityError, match=f"found {len(body)} of 1000 bytes"):
        restore(built.manifest, impatient(source), tmp_path / "m")


def test_a_store_that_is_gone_is_given_up_on_soon(tmp_path: Path) -> None:
    """Not one full round of retries per chunk of a large model."""
    built = random_model()

    def down(key: str) -> None:
        raise RemoteError(f"{key}: cannot connect", hint="check the network", where={"key": key})

    source = DictSource(built.objects, down)
    with pytest.raises(RemoteError, match="cannot connect") as caught:
        restore(built.manifest, impatient(source), tmp_path / "m", concurrency=4)
    assert caught.value.hint == "check the network"
    assert len(source.reads) <= 2 * 4 * Policy().tries
    assert not (tmp_path / "m").exists()


def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    built = random_model()

    def refuse(key: str) -> None:
        raise RemoteError(f"{key}: 403", where={"key": key, "status": 403})

    source = DictSource(built.objects, refuse)
    with pytest.raises(RemoteError, match="403"):
        restore(built.manifest, impatient(source), tmp_path / "m", concurrency=1)
    assert len(source.reads) == 1


def test_a_manifest_whose_file_checksum_is_not_its_chunks_is_refused_before_any_read(tmp_path: Path) -> None:
    built = random_model(files=1)
    file = built.manifest.files[0]
    files = (File(file.path, file.size, file.sha256, "0" * 16, file.mode, 0, file.chunks, file.tensors),)
    manifest = type(built.manifest)("m", "", "", "", files, built.manifest.order)
    source = DictSource(built.objects)
    with pytest.raises(IntegrityError, match="combine"):
        restore(manifest, source, tmp_path / "m")
    assert source.reads == []


def test_no_room_is_said_before_the_first_byte(tmp_path: Path) -> None:
    chunk = Chunk("0" * 64, 0, 100 << 20, "0" * 16)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    count = free // chunk.size + 20
    chunks = tuple(Chunk(f"{n:064x}", n * chunk.size, chunk.size, "0" * 16) for n in range(count))
    file = File("w.bin", count * chunk.size, "0" * 64, "0" * 16, "raw", 0, chunks)
    built = random_model()
    manifest = type(built.manifest)("m", "", "", "", (file,), tuple(c.sha256 for c in chunks))
    source = DictSource({})
    with pytest.raises(CapabilityError, match=f"{file.size + (1 << 20)} bytes needed") as caught:
        restore(manifest, source, tmp_path / "m")
    assert caught.value.exit_code == 4
    assert source.reads == []


# Together


def test_many_restores_of_one_folder_download_it_once(tmp_path: Path) -> None:
    """A small model many times over, so that some look while another renames, unlocks or removes the lock file."""
    built = random_model(files=1, size=4_000)
    for n in range(15):
        folder, failed = tmp_path / f"m{n}", []
        sources = [DictSource(built.objects) for _ in range(6)]
        reports: list[RestoreReport] = []

        def run(source: DictSource, folder: Path = folder, failed: list[BuilderError] = failed) -> None:
            try:
                reports.append(restore(built.manifest, source, folder, concurrency=2))  # noqa: B023
            except BuilderError as exc:
                failed.append(exc)

        threads = [threading.Thread(target=run, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert sum(len(source.reads) for source in sources) == 4
        assert sorted(report.fetched_chunks for report in reports) == [0, 0, 0, 0, 0, 4]
        assert built.same(folder)
        assert not lock_file(folder).exists()


def test_chunks_larger_than_a_window_land_piece_by_piece_in_their_places(tmp_path: Path) -> None:
    built = random_model(files=2, size=3_300_000, chunk_bytes=1_300_000, seed=5)
    assert WINDOW_BYTES < 1_300_000
    built.store(tmp_path / "store")
    for name, source in (("folder", FolderSource(tmp_path / "store")), ("read", DictSource(built.objects))):
        restore(built.manifest, source, tmp_path / name, memory=WINDOW_BYTES)
        assert built.same(tmp_path / name)


def test_nothing_is_written_beyond_a_chunk_whatever_the_object_holds() -> None:
    source, written = retrying(DictSource({"a": b"x" * 150}), Policy(tries=1)), []
    with pytest.raises(IntegrityError, match="of 100 bytes"):
        source.stream(
            "a",
            memoryview(bytearray(64)),
            limit=100,
            check=lambda d: None,
            write=lambda piece, at: written.append(at + len(piece)),
        )
    assert written == [64]


def test_an_object_no_larger_than_the_window_lies_in_it(tmp_path: Path) -> None:
    body = random.Random(2).randbytes(1_300_000)
    (tmp_path / "a").write_bytes(body)
    for source in (FolderSource(tmp_path), DictSource({"a": body})):
        window = memoryview(bytearray(len(body)))
        assert stream(source, "a", window, limit=len(body), seen=len) == len(body)
        assert window == body
