"""Push with many threads: what runs beside what, what bounds memory, and that no fault leaves a thread waiting."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.engines.local import LocalEngine
from builder.errors import BuilderError, IntegrityError, RemoteError
from builder.models.source import ModelSnapshot
from builder.stores.null import NullStore
from builder.weights import push as pushing
from builder.weights import split
from builder.weights.budget import SPARE, ByteBudget, Held
from builder.weights.push import PushReport
from builder.weights.whole import WholeHash
from tests.bounds import BOUND_S
from tests.unit.weights.build import TARGET, Watched


@dataclass(frozen=True)
class Elsewhere:
    """A file that does something before each read."""

    path: str
    body: bytes
    before: Callable[[int], None] = lambda offset: None
    sha256: str = ""
    identity: str = ""

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def at(self) -> str:
        return f"elsewhere:{self.path}"

    @contextmanager
    def open(self) -> Iterator[Elsewhere]:
        yield self

    def read_at(self, offset: int, size: int) -> bytes:
        self.before(offset)
        return self.body[offset : offset + size]

    def require_unchanged(self) -> None: ...


BODY = random.Random(0).randbytes(24 * TARGET)


def push(*files: Elsewhere, store: object = None, threads: int = 4, memory: int = 0) -> PushReport:
    plan = split.plan(ModelSnapshot("elsewhere", "", files), chunk_bytes=TARGET)
    store = store or NullStore()
    return pushing.push(plan, store, LocalEngine(threads), name="m", memory=memory)  # type: ignore[arg-type]


def test_pieces_of_one_file_are_read_at_once() -> None:
    together = threading.Barrier(4)
    push(Elsewhere("a", BODY, lambda offset: together.wait(BOUND_S) and None))


def test_small_files_are_on_their_way_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=BOUND_S)
    store = Watched(tmp_path / "store")
    store.before = lambda key, size: key.startswith("chunks/") and together.wait()  # type: ignore[assignment, method-assign]
    push(*(Elsewhere(f"{n:02d}.bin", os.urandom(100)) for n in range(8)), store=store)


def test_the_next_file_begins_while_the_last_one_ends() -> None:
    """The end of `a` waits for the beginning of `b`."""
    begun = threading.Event()

    def wait(offset: int) -> None:
        if offset == TARGET:
            assert begun.wait(BOUND_S)

    push(Elsewhere("a", BODY[: 2 * TARGET], wait), Elsewhere("b", BODY[2 * TARGET :], lambda offset: begun.set()))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_file_hash_is_in_order_whatever_order_the_pieces_come_in(threads: int) -> None:
    draw = random.Random(threads)
    files = [Elsewhere(f"{n}", BODY[n * 100 :], lambda offset: time.sleep(draw.random() / 300)) for n in range(3)]
    manifest = push(*files, threads=threads).manifest
    assert [f.sha256 for f in manifest.files] == [hashlib.sha256(f.body).hexdigest() for f in files]


def test_a_late_first_piece_holds_no_more_than_the_budget() -> None:
    """All later pieces wait in memory for it."""
    seen: list[int] = []

    def late(offset: int) -> None:
        seen.append(offset)
        if offset == 0:
            time.sleep(0.3)
            assert max(seen) < 9 * TARGET  # the reading has stopped

    report = push(Elsewhere("a", BODY, late), threads=8, memory=int(SPARE * 8 * TARGET))
    assert report.peak_bytes <= 8 * TARGET


def test_a_piece_larger_than_the_memory_goes_alone() -> None:
    report = push(Elsewhere("a", BODY), memory=TARGET // 2)
    assert report.peak_bytes == TARGET
    assert report.manifest.files[0].sha256 == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("at", [0, 5, 23])
@pytest.mark.parametrize("error", [RemoteError("no answer"), IntegrityError("another file"), OSError(5, "Input/output error")])
def test_a_read_that_fails_ends_the_push(at: int, error: Exception) -> None:
    def fail(offset: int) -> None:
        if offset == at * TARGET:
            raise error

    start = time.monotonic()
    with pytest.raises(BuilderError) as caught:
        push(Elsewhere("a", BODY, fail), Elsewhere("b", BODY))
    assert time.monotonic() - start < BOUND_S
    assert str(error.args[-1]) in caught.value.message
    assert not [t for t in threading.enumerate() if t.name.startswith(("builder", "file-hash"))]


def test_ctrl_c_leaves_no_thread(tmp_path: Path) -> None:
    class Interrupted(KeyboardInterrupt):
        pass

    def stop(offset: int) -> None:
        if offset == 7 * TARGET:
            raise Interrupted

    with pytest.raises(Interrupted):
        push(Elsewhere("a", BODY, stop), store=Watched(tmp_path / "store"))
    assert not [t for t in threading.enumerate() if t.name.startswith(("builder", "file-hash"))]


def test_ten_thousand_chunks_take_no_longer_each() -> None:
    """By count: nothing on the way looks at all the others. A scan per chunk would take minutes here."""
    body = random.Random(1).randbytes(10_000 * 16)
    plan = split.plan(ModelSnapshot("elsewhere", "", (Elsewhere("a", body),)), chunk_bytes=16)
    start = time.monotonic()
    report = pushing.push(plan, NullStore(), LocalEngine(4), name="m")
    assert report.chunks == 10_000
    assert time.monotonic() - start < 60


def test_buffers_are_used_again_within_the_limit() -> None:
    budget = ByteBudget(100)
    seen: list[bytearray] = []
    for n in range(50):
        held = Held(budget, 30 + n % 2)
        held.data = held.room()
        assert len(held.room()) == 30 + n % 2
        if not any(held.room() is buffer for buffer in seen):
            seen.append(held.room())
        held.release()
    assert len(seen) == 2
    assert budget.peak == 31


def test_spare_buffers_are_bounded() -> None:
    budget = ByteBudget(100)
    for size in range(1, 101):
        held = Held(budget, size)
        held.room()
        held.release()
    assert sum(map(len, budget._spare)) <= SPARE * 100


def test_a_buffer_lives_until_its_last_holder_lets_go() -> None:
    budget = ByteBudget(10)
    held = Held(budget, 10)
    held.data = held.room()
    second = held.hold()
    held.release()
    assert second.data
    second.release()
    assert held.data == b""
    assert Held(budget, 10).room() is not None


def test_a_hash_that_was_given_up_frees_what_waits() -> None:
    budget, done = ByteBudget(100), []
    with ThreadPoolExecutor(2) as pool:
        whole = WholeHash(pool, 5, done.append)
        for index in (1, 2, 4):
            whole.feed(index, Held(budget, 10))
        whole.give_up()
        whole.feed(0, Held(budget, 10))
    Held(budget, 100)  # all is free again
    assert done == []
