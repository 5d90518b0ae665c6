"""A restored folder is checked byte for byte, and mended by fetching only what is bad."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.format.volume import MANIFEST, MARKER, marker_digest
from builder.transfer.check import check_folder, local_manifest, repair_folder
from builder.transfer.faults import Fault, chunk_fault
from builder.transfer.restore import restore
from builder.transfer.retry import Policy, retrying
from tests.unit.transfer.build import DictSource, Model, model, random_model


@pytest.fixture
def built() -> Model:
    return random_model()


@pytest.fixture
def folder(built: Model, tmp_path: Path) -> Path:
    restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    return tmp_path / "m"


def damage(path: Path, offset: int, body: bytes = b"") -> None:
    """Other bytes at `offset`; by default one flipped bit."""
    whole = bytearray(path.read_bytes())
    body = body or bytes([whole[offset] ^ 4])
    whole[offset : offset + len(body)] = body
    path.write_bytes(whole)


def test_a_good_folder_has_no_faults(folder: Path, built: Model) -> None:
    assert check_folder(folder) == check_folder(folder, deep=True) == []
    assert local_manifest(folder).digest == built.manifest.digest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 49_999), bit=st.integers(0, 7), file=st.integers(0, 1))
def test_any_flipped_bit_is_named_and_mended(folder: Path, built: Model, at: int, bit: int, file: int) -> None:
    path = folder / f"part-{file}.safetensors"
    damage(path, at, bytes([path.read_bytes()[at] ^ 1 << bit]))
    (fault,) = check_folder(folder)
    assert (fault.path, fault.start, fault.end) == (path.name, at // 1000 * 1000, at // 1000 * 1000 + 1000)
    assert fault.tensors == (f"layers.{at // 1000}.w",)
    assert fault.expected.startswith("crc64nvme ")
    source = DictSource(built.objects)
    report = repair_folder(folder, source)
    assert (report.fetched_chunks, report.fetched_bytes) == (len(source.reads), 1000) == (1, 1000)
    assert built.same(folder)


def test_every_kind_of_damage_is_named_and_only_the_bad_is_fetched(folder: Path, built: Model) -> None:
    one, two = folder / "part-0.safetensors", folder / "part-1.safetensors"
    damage(one, 1500)
    damage(one, 30_000, bytes(2000))
    two.write_bytes(two.read_bytes()[:48_500])
    faults = check_folder(folder)
    assert [(f.path, f.start, f.end) for f in faults] == [
        (one.name, 1000, 2000),
        (one.name, 30_000, 31_000),
        (one.name, 31_000, 32_000),
        (two.name, 48_500, 50_000),
        (two.name, 48_000, 49_000),
        (two.name, 49_000, 50_000),
    ]
    assert "found 48500 bytes" in str(faults[3])
    source = DictSource(built.objects)
    report = repair_folder(folder, source)
    assert len(source.reads) == report.fetched_chunks == 5
    assert built.same(folder)
    assert check_folder(folder) == []
    assert marker_digest(folder) == built.manifest.digest


def test_a_missing_and_a_longer_file(folder: Path, built: Model) -> None:
    (folder / "part-0.safetensors").unlink()
    with (folder / "part-1.safetensors").open("ab") as file:
        file.write(b"more")
    assert [f.found for f in check_folder(folder)] == ["no such file", "50004 bytes"]
    report = repair_folder(folder, DictSource(built.objects))
    assert report.fetched_chunks == 50
    assert built.same(folder)


def test_a_link_in_a_files_place_is_a_fault_and_its_target_is_not_written(folder: Path, built: Model, tmp_path: Path) -> None:
    victim = folder / "part-0.safetensors"
    other = tmp_path / "other"
    other.write_bytes(bytes(50_000))
    victim.unlink()
    victim.symlink_to(other)
    assert [f.found for f in check_folder(folder)] == ["not a regular file"]
    repair_folder(folder, DictSource(built.objects))
    assert built.same(folder)
    assert other.read_bytes() == bytes(50_000)


def test_a_file_of_no_model_is_reported_and_left(folder: Path, built: Model) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/extra.safetensors").write_bytes(b"123")
    (fault,) = check_folder(folder)
    assert (fault.path, fault.found) == ("sub/extra.safetensors", "3 bytes")
    source = DictSource(built.objects)
    report = repair_folder(folder, source)
    assert source.reads == []
    assert report.left == (fault,)
    assert (folder / "sub/extra.safetensors").exists()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_manifest_and_marker_mend_each_other(folder: Path, built: Model, how: str) -> None:
    for name in (MANIFEST, MARKER):
        if how == "missing":
            (folder / name).unlink()
        else:
            damage(folder / name, 3)
        assert check_folder(folder)[0].path == name
        with pytest.raises(IntegrityError, match=name):
            local_manifest(folder)
        report = repair_folder(folder, DictSource(built.objects))
        assert report.fetched_chunks == 0
        assert check_folder(folder) == []
        assert (folder / MANIFEST).read_bytes() == built.manifest.to_bytes()


def test_with_neither_the_model_is_unknown(folder: Path, built: Model) -> None:
    (folder / MANIFEST).unlink()
    (folder / MARKER).unlink()
    with pytest.raises(IntegrityError, match="nothing says which model"):
        repair_folder(folder, DictSource(built.objects))


def test_a_folder_that_was_never_restored_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a restored model"):
        check_folder(tmp_path)


def test_deep_finds_what_keeps_its_crc(folder: Path, built: Model) -> None:
    """A forged chunk with the right CRC: built by solving for the last eight bytes, since a CRC is linear."""
    chunk = built.manifest.files[0].chunks[0]
    body = bytearray(random.Random(9).randbytes(chunk.size))
    forge(body, int(chunk.crc64nvme, 16))
    damage(folder / "part-0.safetensors", 0, bytes(body))
    assert check_folder(folder) == []
    (fault,) = check_folder(folder, deep=True)
    assert fault.expected == f"sha256 {chunk.sha256}"
    repair_folder(folder, DictSource(built.objects), deep=True)
    assert built.same(folder)


def test_a_repair_that_fails_leaves_no_marker_and_the_next_one_finishes(folder: Path, built: Model) -> None:
    damage(folder / "part-0.safetensors", 100)
    damage(folder / "part-1.safetensors", 100)
    chunk = built.manifest.files[0].chunks[0]

    def down(key: str) -> None:
        if key == chunk.key:
            raise RemoteError("gone", where={"key": key})

    broken = retrying(DictSource(built.objects, down), Policy(tries=2), sleep=lambda s: None)
    with pytest.raises(RemoteError, match="1 of 2 chunks could not be mended"):
        repair_folder(folder, broken)
    assert marker_digest(folder) is None
    with pytest.raises(IntegrityError, match="marker"):
        restore(built.manifest, DictSource(built.objects), folder)
    source = DictSource(built.objects)
    repair_folder(folder, source)
    assert source.reads == [chunk.key]
    assert built.same(folder)
    assert check_folder(folder) == []


def test_a_bad_chunk_in_the_store_mends_nothing(folder: Path, built: Model) -> None:
    damage(folder / "part-0.safetensors", 100)
    key = built.manifest.files[0].chunks[0].key
    source = retrying(DictSource({**built.objects, key: bytes(1000)}), sleep=lambda s: None)
    with pytest.raises(IntegrityError, match=r"part-0\.safetensors, tensors layers\.0\.w, bytes \[0, 1000\)"):
        repair_folder(folder, source)


def test_empty_and_inline_files_need_no_store(tmp_path: Path) -> None:
    built = model({"empty.bin": b"", "config.json": b"{}", "w.bin": b"123"}, small=["config.json"])
    restore(built.manifest, DictSource(built.objects), tmp_path / "m")
    (tmp_path / "m/empty.bin").unlink()
    (tmp_path / "m/config.json").unlink()
    source = DictSource(built.objects)
    report = repair_folder(tmp_path / "m", source)
    assert source.reads == []
    assert len(report.faults) == 2
    assert built.same(tmp_path / "m")


def forge(body: bytearray, wanted: int) -> None:
    """Set the last eight bytes so that the CRC64NVME of `body` is `wanted` (Gaussian elimination over 64 bits)."""
    from builder.transfer.checksum import crc64nvme

    body[-8:] = bytes(8)
    base = crc64nvme(body)
    rows = []
    for bit in range(64):
        body[-8:] = (1 << bit).to_bytes(8, "little")
        rows.append((crc64nvme(body) ^ base, 1 << bit))
    need, answer = base ^ wanted, 0
    for column in range(63, -1, -1):
        pivot = next(row for row in rows if row[0] >> column & 1)
        rows = [(r[0] ^ pivot[0], r[1] ^ pivot[1]) if r[0] >> column & 1 else r for r in rows if r is not pivot]
        if need >> column & 1:
            need, answer = need ^ pivot[0], answer ^ pivot[1]
    body[-8:] = answer.to_bytes(8, "little")


def test_a_fault_shows_names_escaped_and_its_key_once() -> None:
    fault = Fault("chunks/x", "a\x1b[2J", ("t\nu",), 0, 9, "y", "z")
    assert str(fault) == r"a\x1b[2J, tensors t\nu, bytes [0, 9), chunks/x: expected y, found z"
    file = random_model().manifest.files[0]
    chunk = file.chunks[0]
    assert str(chunk_fault(file, chunk, f"s3://b/{chunk.key}: 503 SlowDown")).count(chunk.key) == 1
