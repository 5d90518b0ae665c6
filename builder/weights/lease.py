"""Leases in a store: any number of pushes at once, or one gc, never both.

    leases/push/<32 hex>, leases/gc/<32 hex>     who holds it (weights.holder); written again every minute while it is held

A push relies on chunks that it found in the store, which a gc might be about to delete, because no manifest names them yet.
So each writes its own lease first and then looks for the other's (Dekker's order). Whichever of two leases was written
later, its writer sees the other one, so both cannot go on. A gc that sees a lease removes its own, waits and begins again; a
push keeps its own and waits until no gc is left. Two gcs that see each other both step back, for a random time.

This needs a store where a listing shows every write that has returned: S3 since December 2020 ("Amazon S3 data consistency
model"), Google Cloud Storage, Azure, R2, Ceph, MinIO, and folders of one machine. It needs no conditional writes, which
servers may ignore, and no clock but the store's: a lease's age is the time of its last write against that of the reader's
own, just written. Leases that are older than `expiry_s` are ignored and removed.

A holder whose renewals fail for half of the expiry has lost the lease for good; `require` says so. The other half, 300 s, is
more than one request with all its retries takes (5 x 40 s and pauses below 20 s; stores/s3.py), so that even a request that
was under way is over when the lease ends. What remains: a process or a connection that is frozen between `require` and
the arrival of its one request for longer than that; a folder on NFS, where a client may see a listing as it was up to a
minute ago (mount it with actimeo=0, or run gc where the pushes run). Against both, gc keeps what is younger than its grace.
"""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from builder.errors import BuilderError, RemoteError
from builder.progress import NoProgress, Progress
from builder.stores.base import Entry, Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.weights import holder

PREFIX = "leases/"
EXCLUDES = {"push": ("gc",), "gc": ("gc", "push")}
WAIT_S = {"push": 3600.0, "gc": 900.0}  # both outlast the lease of a process that was killed
_KEY = re.compile(r"leases/(push|gc)/[0-9a-f]{32}\Z")
_JOIN_S = 10.0
# Counts while the machine sleeps, where the system has such a clock; the store's clock does as well.
_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _clock() -> float:
    return time.clock_gettime(_BOOT)


@dataclass(frozen=True)
class Timing:
    """Seconds. expiry_s: age at which a lease ends; the same for all who use the store.  renew_s: between two renewals.

    poll_s: longest pause between two looks while waiting.
    """

    expiry_s: float = 600.0
    renew_s: float = 60.0
    poll_s: float = 5.0


TIMING = Timing()


@dataclass(frozen=True)
class Other:
    """A lease that is in the way."""

    role: str
    key: str
    holder: holder.Holder

    def __str__(self) -> str:
        return f"{self.role} by {self.holder}"


class Held:
    """A lease of one's own. now: epoch seconds by the store's clock, when the lease was taken."""

    def __init__(self, store: Store, role: str, timing: Timing, clock: Callable[[], float] = _clock) -> None:
        self.role = role
        self.key = f"{PREFIX}{role}/{secrets.token_hex(16)}"
        self.now = 0.0
        self._store, self._timing, self._clock = store, timing, clock
        self._body = holder.me().to_bytes()
        self._renewed = clock()
        self._written = False
        self._lost = False
        self._why: BuilderError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def require(self) -> None:
        """Raises RemoteError once the lease could not be renewed for half of its life. No request is made."""
        if self._lost or self._clock() - self._renewed > self._timing.expiry_s / 2:
            self._lost = True
            why = f": {self._why.message}" if self._why else ""
            raise RemoteError(
                f"{self._store.url}: the lease of this {self.role} could not be renewed{why}",
                hint="run again; what is already there is not sent twice",
                where={"lease": self.key},
            )

    def write(self) -> None:
        """Write or renew the lease; it counts from before the request."""
        start = self._clock()
        body = self._body
        self._store.replace(self.key, body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))
        if self._written and self._clock() - self._renewed > self._timing.expiry_s / 2:
            self._lost = True  # others may have taken it for dead meanwhile
        self._renewed, self._written = start, True

    def keep(self) -> None:
        """Renew it in the background from now on."""
        self._thread = threading.Thread(target=self._renew, name=f"lease-{self.role}", daemon=True)
        self._thread.start()

    def others(self) -> list[Other]:
        """The live leases that this one's role excludes; those that have ended are removed."""
        entries = list(self._store.entries(PREFIX))
        mine = next((e for e in entries if e.key == self.key), None)
        if mine is None:
            raise RemoteError(
                f"{self._store.url}/{self.key}: not listed, though it was just written",
                hint="use a store with strongly consistent listings",
                where={"lease": self.key},
            )
        self.now = mine.modified
        found = (self._look(e) for e in entries if e.key != self.key)
        return [other for other in found if other]

    def release(self) -> None:
        """Never raises: a lease that cannot be removed ends by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        if self._written:
            with contextlib.suppress(BuilderError):
                self._store.delete(self.key)

    def withdraw(self) -> None:
        """Remove it for now; `write` brings it back."""
        self._store.delete(self.key)
        self._written = False

    def _renew(self) -> None:
        while not self._stop.wait(self._timing.renew_s):
            try:
                self.write()
            except BuilderError as exc:
                self._why = exc

    def _look(self, entry: Entry) -> Other | None:
        role = match[1] if (match := _KEY.match(entry.key)) else ""
        if role not in EXCLUDES[self.role]:
            return None
        body = self._store.get(entry.key, holder.MAX_BYTES)
        if body is None:
            return None
        who = holder.read(bytes(body))
        if self.now - entry.modified > self._timing.expiry_s or who.is_dead():
            with contextlib.suppress(BuilderError):  # only tidy; a push may lack the right to delete
                self._store.delete(entry.key)
            return None
        return Other(role, entry.key, who)


@contextlib.contextmanager
def hold(
    store: Store, role: str, *, progress: Progress | None = None, wait_s: float | None = None, timing: Timing = TIMING
) -> Iterator[Held]:
    """The lease of `role` ("push" or "gc") on the store, renewed until the block ends.

    wait_s: how long to wait for others; None: WAIT_S. Raises RemoteError that names them after that, and whatever the
    store raises where it cannot be written.
    """
    held = Held(store, role, timing)
    if getattr(store, "keeps_nothing", False):
        yield held  # nobody can delete there, and nothing is listed
        return
    try:
        _acquire(held, store, progress or NoProgress(), WAIT_S[role] if wait_s is None else wait_s, timing.poll_s)
        yield held
    finally:
        held.release()


def _acquire(held: Held, store: Store, progress: Progress, wait_s: float, poll_s: float) -> None:
    steps_back = held.role == "gc"
    held.write()
    if not steps_back:
        held.keep()
    end, pause, task = time.monotonic() + wait_s, min(0.25, poll_s), None
    while others := held.others():
        if time.monotonic() >= end:
            raise _busy(store, others)
        if task is None:
            task = progress.add("wait: another command uses the store")
        progress.note(task, str(others[0]))
        if steps_back:
            held.withdraw()
        time.sleep(pause * (0.5 + random.random()))  # two that wait for each other must not keep step
        pause = min(pause * 2, poll_s)
        if steps_back:
            held.write()
    if steps_back:
        held.keep()
    if task is not None:
        progress.done(task)


def _busy(store: Store, others: list[Other]) -> RemoteError:
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    return RemoteError(
        f"{store.url}: in use: {others[0]}{more}",
        hint=f"wait for it to end; the lease of a killed process ends after {TIMING.expiry_s / 60:.0f} minutes",
        where={"leases": [{"role": o.role, "key": o.key, "holder": vars(o.holder)} for o in others]},
    )
