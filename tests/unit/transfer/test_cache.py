"""The node cache in one process: what is evicted, what never, and what counts as room."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from builder.errors import CapabilityError, IntegrityError
from builder.format.volume import MARKER, evicted_dir, lock_file, marker_digest, model_dir, partial_dir, use_file
from builder.transfer import cache, lease
from builder.transfer.cache import Budget, Entry, Held, ensure, file_system, listing, prune, scan, victims
from builder.transfer.lease import hold, holders
from builder.transfer.restore import RestoreReport, restore
from tests.unit.transfer.build import DictSource, Model, random_model

MIB = 1 << 20
SPARE = cache.SPARE_BYTES


def a_model(seed: int, size: int = MIB) -> Model:
    return random_model(files=1, size=size, chunk_bytes=64 << 10, seed=seed)


def get(model: Model, root: Path, limit: int | None = None) -> Held:
    source = DictSource(model.objects)
    budget = None if limit is None else Budget(limit)
    return ensure(model.manifest, root, lambda folder: restore(model.manifest, source, folder), budget=budget)


def put(model: Model, root: Path, used_at: float, limit: int | None = None) -> Path:
    """In the cache, not in use, last used at `used_at`."""
    with get(model, root, limit) as held:
        folder = held.folder
    os.utime(use_file(folder), (used_at, used_at))
    return folder


def here(root: Path, *models: Model) -> list[bool]:
    return [model_dir(root, m.manifest.digest).exists() for m in models]


@pytest.mark.parametrize(
    ("text", "budget"),
    [("200GiB", Budget(200 * 2**30)), ("1.5 TB", Budget(1.5e12)), ("10kB", Budget(10e3)), ("80%", Budget(80, percent=True))],
)
def test_a_budget_is_a_size_or_a_share_of_the_disk(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "200", "0GiB", "101%", "0%", "-1GiB", "1e3GiB", "5 GiB free", "nan%"])
def test_a_budget_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 200GiB, or a share of the disk such as 80%"):
        Budget.parse(text)


def test_a_share_is_of_the_whole_file_system(tmp_path: Path) -> None:
    fs = os.statvfs(tmp_path)
    assert Budget(50, percent=True).limit(tmp_path) == fs.f_blocks * fs.f_frsize // 2


def entry(name: str, size: int, used_at: float, **values: bool) -> Entry:
    given = {"complete": True, "in_use": False, "kept": False} | values
    return Entry(name, Path(name), size=size, pending=0, used_at=used_at, **given)


def test_the_longest_unused_goes_first_and_no_more_than_needed() -> None:
    entries = [entry("new", 10, 30), entry("old", 10, 10), entry("middle", 10, 20)]
    assert [e.digest for e in victims(entries, 11, now=40)] == ["old", "middle"]
    assert [e.digest for e in victims(entries, 10, now=40)] == ["old"]
    assert victims(entries, 0, now=40) == []
    assert len(victims(entries, 1000, now=40)) == 3


def test_what_takes_nothing_is_no_victim() -> None:
    assert victims([entry("empty", 0, 1)], 10, now=40) == []


def test_what_is_in_use_or_no_caches_is_no_victim() -> None:
    entries = [entry("used", 10, 1, in_use=True), entry("baked", 10, 2, kept=True), entry("free", 10, 3)]
    assert [e.digest for e in victims(entries, 99, now=40)] == ["free"]


def test_an_abandoned_download_goes_before_any_model_and_a_recent_one_by_its_age() -> None:
    entries = [entry("model", 10, 5000), entry("partial", 10, 6000, complete=False)]
    assert [e.digest for e in victims(entries, 1, now=6000 + cache.STALE_S)] == ["partial"]
    assert [e.digest for e in victims(entries, 1, now=6001)] == ["model"]


def test_the_budget_holds_and_the_longest_unused_model_makes_room(tmp_path: Path) -> None:
    a, b, c, d = (a_model(n) for n in range(4))
    limit = 4 * MIB
    now = time.time()
    put(a, tmp_path, now - 100, limit)
    put(b, tmp_path, now - 300, limit)
    put(c, tmp_path, now - 200, limit)
    with get(d, tmp_path, limit) as held:
        assert d.same(held.folder)
        assert held.report.fetched_bytes == MIB
    assert here(tmp_path, a, b, c, d) == [True, False, False, True], "1 MiB of room for the marker counts too"
    assert sum(e.size for e in scan(tmp_path)) <= limit
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        name for m in (a, d) for name in (m.manifest.digest[7:], use_file(model_dir(tmp_path, m.manifest.digest)).name)
    )


def test_using_a_model_makes_it_the_most_recent(tmp_path: Path) -> None:
    a, b, c = (a_model(n) for n in range(3))
    put(a, tmp_path, 100)
    put(b, tmp_path, 200)
    with get(a, tmp_path) as held:
        assert (held.report.fetched_bytes, held.report.reused_bytes) == (0, MIB)
    get(c, tmp_path, limit=4 * MIB).lease.release()
    assert here(tmp_path, a, b, c) == [True, False, True]


def test_what_is_in_use_is_never_evicted_and_then_nothing_is(tmp_path: Path) -> None:
    a, b, c = a_model(0), a_model(1), a_model(2, 4 * MIB)
    first = get(a, tmp_path)
    put(b, tmp_path, 100)
    with pytest.raises(CapabilityError, match=f"{4 * MIB + SPARE} bytes needed in a cache of {5 * MIB}") as caught:
        get(c, tmp_path, limit=5 * MIB)
    assert "builder cache ls" in caught.value.hint
    assert here(tmp_path, a, b, c) == [True, True, False], "b would not have been enough, so it stays"
    assert a.same(first.folder)
    first.lease.release()
    get(c, tmp_path, limit=5 * MIB + 8192).lease.release()
    assert here(tmp_path, a, b, c) == [False, False, True]


def test_without_a_budget_nothing_is_evicted(tmp_path: Path) -> None:
    a, b = a_model(0), a_model(1)
    put(a, tmp_path, 100)
    get(b, tmp_path).lease.release()
    assert here(tmp_path, a, b) == [True, True]


def test_a_folder_that_no_cache_fetched_is_never_removed(tmp_path: Path) -> None:
    baked, other = a_model(0), a_model(1)
    folder = model_dir(tmp_path, baked.manifest.digest)
    restore(baked.manifest, DictSource(baked.objects), folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / ("0" * 64)).mkdir()
    (tmp_path / ("1" * 64)).symlink_to(folder)
    with pytest.raises(CapabilityError, match="0 of them not in use"):
        get(other, tmp_path, limit=2 * MIB + 8192)
    with get(baked, tmp_path, limit=MIB) as held:
        assert held.lease.fd is None
        assert not use_file(folder).exists()
    assert prune(tmp_path, 0) == []
    assert baked.same(folder)
    assert {p.name for p in tmp_path.iterdir()} >= {"notes", "0" * 64, "1" * 64}


def test_a_model_without_its_marker_is_kept(tmp_path: Path) -> None:
    a = a_model(0)
    folder = put(a, tmp_path, 100)
    (folder / MARKER).unlink()
    assert prune(tmp_path, 0) == []
    assert [(e.complete, e.kept) for e in scan(tmp_path)] == [(False, True)]


def test_a_running_download_counts_in_full_before_it_is_on_disk(tmp_path: Path) -> None:
    big, small = a_model(0, 3 * MIB), a_model(1)
    seen: list[Entry] = []

    def fetch(folder: Path) -> RestoreReport:
        seen.extend(scan(tmp_path))
        with pytest.raises(CapabilityError, match=f"{3 * MIB + SPARE} taken, 0 of them not in use"):
            get(small, tmp_path, limit=5 * MIB)
        return restore(big.manifest, DictSource(big.objects), folder)

    ensure(big.manifest, tmp_path, fetch, budget=Budget(5 * MIB)).lease.release()
    assert [(e.in_use, e.size, e.pending) for e in seen] == [(True, 0, 3 * MIB + SPARE)]
    assert here(tmp_path, big, small) == [True, False]


def test_room_that_is_free_on_the_disk_but_promised_is_not_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big, small = a_model(0, 3 * MIB), a_model(1)
    real = os.statvfs(tmp_path)
    disk = os.statvfs_result((*real[:3], 5 * MIB // real.f_frsize, 5 * MIB // real.f_frsize, *real[5:]))

    def fetch(folder: Path) -> RestoreReport:
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda path: disk)
            with pytest.raises(CapabilityError, match=f"{5 * MIB - 3 * MIB - SPARE} free on the disk"):
                get(small, tmp_path, limit=100 * MIB)
        return restore(big.manifest, DictSource(big.objects), folder)

    ensure(big.manifest, tmp_path, fetch, budget=Budget(100 * MIB)).lease.release()


def test_a_failed_download_lets_go_and_is_gone_on_with(tmp_path: Path) -> None:
    a = a_model(0)
    key = next(iter(a.objects))
    with pytest.raises(IntegrityError):
        ensure(
            a.manifest, tmp_path, lambda f: restore(a.manifest, DictSource({k: v for k, v in a.objects.items() if k != key}), f)
        )
    (found,) = scan(tmp_path)
    assert (found.complete, found.in_use, found.kept, found.pending) == (False, False, False, 0)
    assert found.size >= MIB
    with get(a, tmp_path) as held:
        assert held.report.reused_bytes > 0


def test_an_abandoned_download_is_removed_unless_someone_writes_it(tmp_path: Path) -> None:
    a = a_model(0)
    partial = partial_dir(model_dir(tmp_path, a.manifest.digest))
    partial.mkdir(parents=True)
    (partial / "part").write_bytes(bytes(MIB))
    with lock_file(model_dir(tmp_path, a.manifest.digest)).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert prune(tmp_path, 0) == []
        assert partial.exists()
    assert [e.size >= MIB for e in prune(tmp_path, 0)] == [True]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_eviction_left_is_removed_by_the_next(tmp_path: Path) -> None:
    a, b = a_model(0), a_model(1)
    folder = put(a, tmp_path, 100)
    folder.rename(evicted_dir(folder, "0badcafe"))
    (tmp_path / ".keep.0badcafe.evicted").mkdir()
    assert prune(tmp_path, 1 << 40) == []
    assert [p.name for p in tmp_path.iterdir()] == [".keep.0badcafe.evicted"]
    put(a, tmp_path, 100).rename(evicted_dir(folder, "0badcafe"))
    get(b, tmp_path, limit=3 * MIB).lease.release()
    assert not evicted_dir(folder, "0badcafe").exists()


def test_a_lease_on_what_is_evicted_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evictor comes between the open and the lock: the lock is on a file that has no name any more."""
    a = a_model(0)
    folder = put(a, tmp_path, 100)
    real, evictions = lease._flock, []

    def flock(fd: int, how: int) -> bool:
        if how == fcntl.LOCK_SH and not evictions:
            evictions.append(1)
            assert len(prune(tmp_path, 0)) == 1
        return real(fd, how)

    monkeypatch.setattr(lease, "_flock", flock)
    with get(a, tmp_path) as held:
        assert held.report.fetched_bytes == MIB
        assert a.same(folder)
        assert held.lease.fd is not None
        assert os.path.samestat(os.fstat(held.lease.fd), use_file(folder).stat())


def test_what_is_taken_into_use_after_the_look_is_left_alone(tmp_path: Path) -> None:
    a = a_model(0)
    folder = put(a, tmp_path, 100)
    (entry,) = scan(tmp_path)
    assert not entry.in_use
    held = hold(folder)
    assert not cache._evict(entry)
    assert a.same(folder)
    held.release()
    assert cache._evict(entry)
    assert list(tmp_path.iterdir()) == []


def test_a_use_is_noted_while_it_lasts_and_when_it_ends(tmp_path: Path) -> None:
    held = get(a_model(0), tmp_path)
    use = use_file(held.folder)
    assert use.stat().st_mode & 0o777 == 0o664
    for note in (held.lease.touch, held.lease.release):
        os.utime(use, (100, 100))
        note()
        assert time.time() - use.stat().st_mtime < 60
    held.lease.release()


def test_prune_stops_at_the_size_and_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    a, b, c = (a_model(n) for n in range(3))
    for n, m in enumerate((a, b, c)):
        put(m, tmp_path, 100 + n)
    before = sorted(tmp_path.rglob("*"))
    assert [e.digest for e in prune(tmp_path, 2 * MIB, dry_run=True)] == [a.manifest.digest, b.manifest.digest]
    assert sorted(tmp_path.rglob("*")) == before
    assert [e.digest for e in prune(tmp_path, 3 * MIB)] == [a.manifest.digest]
    assert here(tmp_path, a, b, c) == [False, True, True]
    assert prune(tmp_path / "none", 0) == []


def test_a_child_keeps_the_lease_that_its_parent_released(tmp_path: Path) -> None:
    a = a_model(0)
    held = get(a, tmp_path)
    assert held.lease.fd is not None
    child = os.dup(held.lease.fd)  # the same open file, as in a child process
    held.lease.release()
    assert prune(tmp_path, 0) == []
    assert holders(held.folder) == [os.getpid()]
    os.close(child)
    assert len(prune(tmp_path, 0)) == 1


def test_a_reader_who_may_only_read_is_a_user_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As through a read-only mount: the use file is there, for whoever fetched the model made it."""
    folder = put(a_model(0), tmp_path, 100)
    real = os.open

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        held = hold(folder)
        assert hold(tmp_path / ("0" * 64), create=True).fd is None
    assert held.fd is not None
    assert prune(tmp_path, 0) == []
    held.release()
    assert len(prune(tmp_path, 0)) == 1


def test_where_locks_do_not_work_models_are_used_and_nothing_is_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = a_model(0)
    put(a, tmp_path, 100)

    def unsupported(fd: int, how: int) -> bool:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lease, "_flock", unsupported)
    with get(a, tmp_path) as held:
        assert held.lease.fd is None
        assert a.same(held.folder)
    assert prune(tmp_path, 0) == []
    assert [e.in_use for e in listing(tmp_path)] == [True]


def test_nothing_is_evicted_from_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = a_model(0), a_model(1)
    put(a, tmp_path, 100)
    monkeypatch.setattr(cache, "file_system", lambda path: "nfs4")
    with pytest.raises(CapabilityError, match="on nfs4: nothing is evicted there"):
        get(b, tmp_path, limit=2 * MIB)
    with pytest.raises(CapabilityError, match="on nfs4"):
        prune(tmp_path, 0)
    get(b, tmp_path, limit=10 * MIB).lease.release()
    assert here(tmp_path, a, b) == [True, True]


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    inner = tmp_path / "a b"
    inner.mkdir()
    mounts.write_text(
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
        f"2 1 0:5 / {tmp_path}/a\\040b rw - nfs4 host:/x rw\n"
        f"3 1 0:6 / {tmp_path}/a rw master:2 - tmpfs none rw\n"
    )
    assert [file_system(p, mounts) for p in (inner, inner / "new", tmp_path, Path("/"))] == ["nfs4", "nfs4", "ext4", "ext4"]
    assert file_system(tmp_path, tmp_path / "none") == ""
    assert file_system(tmp_path)


def test_the_listing_says_who_uses_what(tmp_path: Path) -> None:
    a, b = a_model(0), a_model(1)
    put(a, tmp_path, 100)
    with get(b, tmp_path) as held:
        found = {e.digest: e for e in listing(tmp_path)}
        assert found[b.manifest.digest].in_use
        assert holders(held.folder) == [os.getpid()]
    assert not found[a.manifest.digest].in_use
    assert found[a.manifest.digest].used_at == 100
    assert time.time() - found[b.manifest.digest].used_at < 60
    assert listing(tmp_path / "none") == []
    assert marker_digest(held.folder) == b.manifest.digest
