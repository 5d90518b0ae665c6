"""The node cache: a models root that every process and container of one kernel fills, uses and keeps within a budget.

    with ensure(manifest, root, fetch, budget=Budget.parse("200GiB")) as held:
        ...                 # held.folder is complete, and no eviction removes it before the block ends

    <64 hex>/, .<64 hex>.partial/, .lock, .use    a model, its download, and who writes and uses it: `lease`
    .<64 hex>.<8 hex>.evicted/                    being deleted; the next eviction finishes what a killed one left
    .cache.lock                                   room is being made: two downloads never count the same free bytes

What goes first is an abandoned download, then the model that was used longest ago; never what is in use, and never what
no cache fetched (a baked model, one pulled with --to): nobody expects his own folder to vanish. Eviction is one rename
under the lease's exclusive lock, a sync of the root, then the deletion: a model is there whole or not at all, whenever
the process or the machine stops. Outside LOCAL file systems nothing is evicted: other machines' locks may not show.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError
from builder.format.manifest import Manifest
from builder.format.volume import evicted_dir, lock_file, marker_digest, model_dir, partial_dir, use_file
from builder.transfer.claim import disk_errors, locked, sync
from builder.transfer.lease import Lease, alone, hold, is_locked
from builder.transfer.progress import Progress, Silent
from builder.transfer.restore import SPARE_BYTES, RestoreReport

Fetch = Callable[[Path], RestoreReport]

STALE_S = 3600.0  # a download that nobody has gone on with for so long goes before any complete model
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
_OURS = re.compile(r"\.?([0-9a-f]{64})(?:\.partial|\.use)?")
_EVICTED = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{8}\.evicted")
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(%|B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")


@dataclass(frozen=True)
class Budget:
    """What a models root may take: `amount` bytes, or per cent of its file system if `percent`."""

    amount: float
    percent: bool = False

    @staticmethod
    def parse(text: str) -> Budget:
        """
        >>> Budget.parse("200GiB").amount == 200 * 2**30, Budget.parse("80%")
        (True, Budget(amount=80.0, percent=True))
        """
        match = _BUDGET.fullmatch(text.strip())
        if not match or not 0 < float(match[1]) <= (100 if match[2] == "%" else 2**60):
            raise ValueError("expected a size such as 200GiB, or a share of the disk such as 80%")
        number, unit = float(match[1]), match[2]
        if unit == "%":
            return Budget(number, percent=True)
        return Budget(number * (1024 if "i" in unit else 1000) ** "BKMGT".index(unit[0].upper()))

    def limit(self, root: Path) -> int:
        """Bytes."""
        if not self.percent:
            return int(self.amount)
        fs = os.statvfs(root)
        return int(fs.f_blocks * fs.f_frsize * self.amount / 100)


@dataclass(frozen=True)
class Held:
    """A complete model, in use until the block ends or `lease` is released."""

    folder: Path
    report: RestoreReport
    lease: Lease

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.lease.release()


@dataclass(frozen=True)
class Entry:
    """What lies in a models root under one digest.

    size: bytes on disk.  pending: bytes that a running download will still take.  used_at: epoch seconds by this
    machine's clock, 0 if nobody noted it.  in_use: leased, or being written.  kept: never evicted (no use file, or a
    model without its marker).
    """

    digest: str
    folder: Path
    complete: bool
    size: int
    pending: int
    used_at: float
    in_use: bool
    kept: bool

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "folder": str(self.folder)}


def ensure(
    manifest: Manifest, root: Path, fetch: Fetch, *, budget: Budget | None = None, progress: Progress | None = None
) -> Held:
    """The model, complete under `root` and in use until the result is released. Others that ask meanwhile wait.

    fetch: restores the model to the folder that it is given; called also when it is there, for the report.
    budget: what is not in use is evicted, the longest unused first, until the model fits into the budget and on the disk.
    None: nothing is evicted, and a full disk is an error.
    Raises what fetch does; CapabilityError if the model does not fit beside what is in use, and then nothing is evicted.
    """
    digest, progress = manifest.digest, progress or Silent()
    folder = model_dir(Path(os.path.abspath(root)), digest)  # noqa: PTH100 - as restore does
    with disk_errors(root):
        lease = _lease(folder, digest)
        try:
            if marker_digest(folder) != digest:
                _admit(manifest, folder, lease, budget, progress)
            report = fetch(folder)
            lease.touch()
        except BaseException:
            lease.release()
            raise
    return Held(folder, report, lease)


def _lease(folder: Path, digest: str) -> Lease:
    """A lease on the model that is here, or on the one that this caller is about to fetch."""
    while True:
        here = marker_digest(folder) == digest
        if not here:
            folder.parent.mkdir(parents=True, exist_ok=True)
        lease = hold(folder, create=not here)  # what is here and has no use file stays without one: it is not the cache's
        if not here or marker_digest(folder) == digest:
            return lease
        lease.release()  # evicted between the look and the lease


def scan(root: Path) -> list[Entry]:
    """Everything in the root that has the cache's form, by digest. Takes no lock for longer than a look."""
    try:
        names = {match[1] for path in root.iterdir() if (match := _OURS.fullmatch(path.name))}
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_entry(root / name) for name in sorted(names)]


def listing(root: Path, progress: Progress | None = None) -> list[Entry]:
    """`scan`, while nobody evicts: a look at a lock is one for a moment, and would make a model seem in use to an evictor."""
    with disk_errors(root):
        if not os.access(root, os.W_OK):
            return scan(root)
        with locked(root / "cache", progress or Silent()):
            return scan(root)


def victims(entries: Iterable[Entry], excess: int, *, now: float) -> list[Entry]:
    """What to evict so that `excess` bytes become free: abandoned downloads, then the longest unused. As far as it goes."""
    chosen: list[Entry] = []
    free = [entry for entry in entries if entry.size and not entry.in_use and not entry.kept]
    for entry in sorted(free, key=lambda e: (e.complete or now - e.used_at < STALE_S, e.used_at, e.digest)):
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size
    return chosen


def prune(root: Path, limit: int, *, dry_run: bool = False, progress: Progress | None = None) -> list[Entry]:
    """Evict until the root takes at most `limit` bytes, or all that is left is in use or kept. Returns what went.

    Removes also what an eviction that was killed left behind. dry_run: nothing is changed.
    """
    with disk_errors(root):
        if not root.is_dir():
            return []
        _require_local(root)
        with locked(root / "cache", progress or Silent()):
            if dry_run:
                return _surplus(root, limit)
            _sweep(root)
            return [entry for entry in _surplus(root, limit) if _evict(entry)]


def _surplus(root: Path, limit: int) -> list[Entry]:
    entries = scan(root)
    return victims(entries, sum(e.size + e.pending for e in entries) - limit, now=time.time())


def _admit(manifest: Manifest, folder: Path, lease: Lease, budget: Budget | None, progress: Progress) -> None:
    """Room for the model, counted as taken from here on."""
    size = manifest.size + SPARE_BYTES
    if budget is None:
        lease.note_size(size)
        return
    with locked(folder.parent / "cache", progress):
        _make_room(folder, size, budget.limit(folder.parent))
        lease.note_size(size)


def _make_room(folder: Path, size: int, limit: int) -> None:
    """Evict until `folder` may grow to `size` bytes, one by one: each look counts anew. Under `.cache.lock`."""
    root, refused = folder.parent, set[str]()
    _sweep(root)
    while True:
        entries = [entry for entry in scan(root) if entry.folder != folder]
        mine = _entry(folder).size
        fs = os.statvfs(root)
        pending = sum(e.pending for e in entries)
        taken, free = sum(e.size for e in entries) + pending, fs.f_bavail * fs.f_frsize - pending
        excess = max(taken + max(size, mine) - limit, size - mine - free)
        if excess <= 0:
            return
        _require_local(root)
        chosen = victims([e for e in entries if e.digest not in refused], excess, now=time.time())
        if sum(e.size for e in chosen) < excess:
            loose = sum(e.size for e in entries if not e.in_use and not e.kept)
            raise CapabilityError(
                f"{root}: {size} bytes needed in a cache of {limit}; {taken} taken, {loose} of them not in use; "
                f"{free} free on the disk",
                hint=f"raise the cache size, or stop what uses the other models (builder cache ls --root {root})",
                where={"file": str(folder)},
            )
        if not _evict(chosen[0]):
            refused.add(chosen[0].digest)


def _evict(entry: Entry) -> bool:
    """Away in one rename, then deleted; False if it is in use after all, or no longer what it was."""
    folder = entry.folder
    paths = [folder, partial_dir(folder)] if entry.complete else [partial_dir(folder)]
    with alone(folder, make_use=not entry.complete) as free:
        if not free or _complete(folder) != entry.complete:
            return False
        gone = [path.rename(evicted_dir(folder, secrets.token_hex(4))) for path in paths if _is_folder(path)]
        sync(folder.parent)  # or a power cut might bring the name back to a folder that is half deleted
        use_file(folder).unlink(missing_ok=True)
    for path in gone:
        _delete(path)
    return True


def _sweep(root: Path) -> None:
    """What a killed eviction left: renamed folders, and use files that belong to nothing. Under `.cache.lock`."""
    for path in root.iterdir():
        if _EVICTED.fullmatch(path.name):
            _delete(path)
    for entry in scan(root):
        if not entry.size and not entry.complete and not entry.in_use and not entry.kept:
            _evict(entry)


def _delete(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # someone else deletes it too, by hand
        shutil.rmtree(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _complete(folder: Path) -> bool:
    return _is_folder(folder) and marker_digest(folder) == f"sha256:{folder.name}"


def _entry(folder: Path) -> Entry:
    use, complete = use_file(folder), _complete(folder)
    size = _size(folder) + _size(partial_dir(folder))
    in_use = is_locked(use) or is_locked(lock_file(folder))
    used_at, noted = 0.0, 0
    with contextlib.suppress(OSError, ValueError):
        used_at = (use if use.exists() else partial_dir(folder)).stat().st_mtime
        noted = int(use.read_bytes()[:20])
    pending = max(0, noted - size) if in_use and not complete else 0
    kept = os.path.lexists(folder) and not (complete and use.exists())
    return Entry(f"sha256:{folder.name}", folder, complete, size, pending, used_at, in_use, kept)


def _size(folder: Path) -> int:
    """Bytes on disk of a folder; what vanishes meanwhile takes none."""
    total = 0
    for at, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(at, name)).st_blocks * 512  # noqa: PTH118 - thousands of files
    return total


def _require_local(root: Path) -> None:
    """Raises CapabilityError where a lease of another machine might not be seen."""
    kind = file_system(root)
    if kind not in LOCAL:
        raise CapabilityError(
            f"{root}: on {kind or 'an unknown file system'}: nothing is evicted there, for other machines' locks may not show",
            hint="keep the cache on a local disk, or remove models by hand",
            where={"file": str(root)},
        )


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that `path` is on, as mount(8) names it; "" if unknown.

    By the longest mount point, not by device number: btrfs gives each subvolume its own. Source: proc_pid_mountinfo(5).
    """
    found, kind, real = "", "", f"{path.resolve()}/"
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            head, _, tail = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), head.split()[4]).rstrip("/") + "/"
            if real.startswith(point) and len(point) >= len(found):
                found, kind = point, tail.split()[0]
    return kind
