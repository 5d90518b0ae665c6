"""Leases: pushes together, a gc alone, the dead ignored, and no lease that is only believed to be held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from builder.errors import RemoteError
from builder.stores.directory import DirectoryStore
from builder.stores.null import NullStore
from builder.weights import holder, lease
from builder.weights.holder import Holder
from builder.weights.lease import Held, Timing, hold
from tests.bounds import BOUND_S

FAST = Timing(expiry_s=600, renew_s=0.02, poll_s=0.02)
SLOW = replace(FAST, renew_s=600)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def leases(store: DirectoryStore) -> list[str]:
    return [key for key, _ in store.keys("leases/")]


def plant(store: DirectoryStore, role: str, *, age_s: float = 0.0, who: Holder | None = None) -> Path:
    """A lease of another machine, as a killed command leaves it."""
    key = f"leases/{role}/{os.urandom(16).hex()}"
    body = (who or Holder("elsewhere", 7, "noon", "other-boot/1", "1")).to_bytes()
    store.replace(key, body, sha256="0" * 64, crc64nvme="0" * 16)
    then = time.time() - age_s
    os.utime(store.root / key, (then, then))
    return store.root / key


def test_pushes_run_together_and_leave_nothing(store: DirectoryStore) -> None:
    with hold(store, "push", timing=FAST) as one, hold(store, "push", timing=FAST) as two:
        assert len(leases(store)) == 2
        one.require()
        two.require()
    assert leases(store) == []


@pytest.mark.parametrize(("first", "second"), [("push", "gc"), ("gc", "push"), ("gc", "gc")])
def test_a_gc_is_alone(store: DirectoryStore, first: str, second: str) -> None:
    with (
        hold(store, first, timing=FAST),
        pytest.raises(RemoteError, match=rf"in use: {first} by process {os.getpid()} on ") as caught,
        hold(store, second, timing=FAST, wait_s=0.1),
    ):
        raise AssertionError("both")
    assert caught.value.exit_code == 5
    assert caught.value.where["leases"][0]["role"] == first
    assert leases(store) == []


@pytest.mark.parametrize(("first", "second"), [("push", "gc"), ("gc", "push")])
def test_the_second_waits_for_the_first(store: DirectoryStore, first: str, second: str) -> None:
    order: list[str] = []

    def wait() -> None:
        with hold(store, second, timing=FAST, wait_s=60):
            order.append(second)

    with hold(store, first, timing=FAST):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while first == "gc" and len(leases(store)) < 2:  # a push that waits shows its own
            time.sleep(0.01)
        order.append(first)
    waiter.join(60)
    assert order == [first, second]


def test_never_a_gc_beside_another(store: DirectoryStore) -> None:
    """Many of each at once. Inside, nobody sees one whose role excludes the own."""
    inside: dict[str, int] = {"push": 0, "gc": 0}
    lock, wrong, entered = threading.Lock(), [], []

    def one(role: str) -> None:
        for _ in range(4):
            with hold(store, role, timing=FAST, wait_s=120) as held:
                with lock:
                    inside[role] += 1
                    if inside["gc"] and inside["gc"] + inside["push"] > 1:
                        wrong.append(dict(inside))
                    entered.append(role)
                held.require()
                time.sleep(0.002)
                with lock:
                    inside[role] -= 1

    threads = [threading.Thread(target=one, args=(role,)) for role in ("push", "push", "push", "gc", "gc")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not wrong
    assert (entered.count("push"), entered.count("gc")) == (12, 8)
    assert leases(store) == []


@pytest.mark.parametrize("role", ["push", "gc"])
def test_an_ended_lease_is_ignored_and_removed(store: DirectoryStore, role: str) -> None:
    left = plant(store, "gc", age_s=FAST.expiry_s + 1)
    with hold(store, role, timing=FAST, wait_s=0):
        assert not left.exists()


def test_a_lease_that_has_not_ended_counts(store: DirectoryStore) -> None:
    left = plant(store, "push", age_s=FAST.expiry_s - 30)
    with pytest.raises(RemoteError, match="process 7 on elsewhere, since noon"), hold(store, "gc", timing=FAST, wait_s=0):
        pass
    assert left.exists()


def test_ages_are_by_the_stores_clock(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is an hour ahead; the store's is not."""
    plant(store, "push", age_s=10)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    with pytest.raises(RemoteError, match="in use"), hold(store, "gc", timing=FAST, wait_s=0):
        pass


KILLED = """
import os, sys, signal
from pathlib import Path
from builder.stores.directory import DirectoryStore
from builder.weights.lease import hold
with hold(DirectoryStore(Path(sys.argv[1])), sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs /proc")
@pytest.mark.parametrize(("killed", "after"), [("gc", "push"), ("push", "gc")])
def test_a_killed_process_of_this_machine_blocks_nobody(store: DirectoryStore, killed: str, after: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root), killed], check=False, capture_output=True, timeout=BOUND_S
    )
    assert done.returncode == -9, done.stderr
    assert len(leases(store)) == 1
    with hold(store, after, timing=FAST, wait_s=0) as held:
        assert leases(store) == [held.key]


def test_only_what_is_certainly_dead_is_dead() -> None:
    here = holder.me()
    assert not here.is_dead()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = replace(here, pid=ended.pid)
    assert gone.is_dead()
    assert replace(here, born="1").is_dead()  # a younger process has the number now
    assert not replace(gone, machine="other-boot/1").is_dead()
    assert not replace(gone, machine="").is_dead()
    assert not replace(gone, host="elsewhere").is_dead()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"pid": -1, "host": "", "since": "", "machine": "", "born": ""}', b"[" * 5000]
)
def test_a_lease_that_is_not_understood_counts_all_the_same(store: DirectoryStore, body: bytes) -> None:
    assert holder.read(body) == Holder()
    path = plant(store, "push")
    path.write_bytes(body[: holder.MAX_BYTES])
    with pytest.raises(RemoteError, match="in use: push by process 0"), hold(store, "gc", timing=FAST, wait_s=0):
        pass


def test_holders_survive_their_json() -> None:
    assert holder.read(holder.me().to_bytes()) == holder.me()
    assert json.loads(holder.me().to_bytes())["pid"] == os.getpid()


def test_foreign_objects_are_left(store: DirectoryStore) -> None:
    for key in ("leases/gc/readme", "leases/other/" + "0" * 32, "leases/gc/" + "G" * 32):
        store.put(key, b"x", sha256="0" * 64, crc64nvme="0" * 16)
    before = leases(store)
    with hold(store, "push", timing=FAST, wait_s=0):
        pass
    assert leases(store) == before


def test_it_is_renewed(store: DirectoryStore) -> None:
    with hold(store, "push", timing=FAST) as held:
        first = (store.root / held.key).stat().st_mtime_ns
        end = time.monotonic() + BOUND_S
        while (store.root / held.key).stat().st_mtime_ns == first:
            assert time.monotonic() < end
            time.sleep(0.01)
        held.require()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_holder_that_cannot_renew_must_stop(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    held = Held(store, "push", SLOW, clock)
    held.write()
    clock.now += 299
    held.require()
    clock.now += 2
    with pytest.raises(RemoteError, match="the lease of this push could not be renewed"):
        held.require()
    held.write()  # too late: others may have seen it ended
    with pytest.raises(RemoteError, match="could not be renewed"):
        held.require()


def test_a_renewal_after_too_long_does_not_revive(store: DirectoryStore) -> None:
    clock = Clock()
    held = Held(store, "push", SLOW, clock)
    held.write()
    clock.now += 301
    held.write()
    with pytest.raises(RemoteError, match="could not be renewed"):
        held.require()


def test_the_reason_is_told(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RemoteError("503 SlowDown")

    with hold(store, "push", timing=replace(FAST, expiry_s=0.2)) as held:
        monkeypatch.setattr(store, "replace", refuse)
        time.sleep(0.3)
        with pytest.raises(RemoteError, match="could not be renewed: 503 SlowDown"):
            held.require()


class Forgetful(DirectoryStore):
    """Listings lag behind writes."""

    def entries(self, prefix: str) -> Iterator[lease.Entry]:
        return iter(())


def test_a_store_with_lagging_listings_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RemoteError, match="not listed, though it was just written") as caught,
        hold(Forgetful(tmp_path), "push"),
    ):
        pass
    assert "consistent" in caught.value.hint


def test_a_store_that_keeps_nothing_needs_none() -> None:
    with ExitStack() as stack:
        for role in ("gc", "push", "gc"):
            stack.enter_context(hold(NullStore(), role)).require()


def test_a_push_without_the_right_to_delete_goes_on(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ended lease is in the way of nobody, and the own one ends by itself."""

    def refuse(key: str) -> None:
        raise RemoteError("403 AccessDenied", where={"status": 403})

    plant(store, "gc", age_s=FAST.expiry_s + 1)
    monkeypatch.setattr(store, "delete", refuse)
    with hold(store, "push", timing=FAST, wait_s=0) as held:
        held.require()
    assert len(leases(store)) == 2
