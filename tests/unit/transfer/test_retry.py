"""Trying again: how often, how long, and when not. A fake clock: nothing sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builder.errors import BuilderError, CapabilityError, IntegrityError, RemoteError
from builder.transfer.checksum import Buffer
from builder.transfer.retry import Policy, RetryingSource, interruptible, retrying


class Clock:
    """Time passes only in sleep() and take()."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Failing:
    """Raises the given errors in turn, then answers. Each read takes `seconds`."""

    url = "test:"

    def __init__(self, clock: Clock, errors: list[Callable[[], BuilderError]], seconds: float = 0.0) -> None:
        self.clock, self.errors, self.seconds, self.reads = clock, errors, seconds, 0

    def read(self, key: str, *, limit: int) -> Buffer | None:
        self.reads += 1
        self.clock.now += self.seconds
        if self.reads <= len(self.errors):
            raise self.errors[self.reads - 1]()
        return b"body"


def remote(**where: object) -> Callable[[], BuilderError]:
    return lambda: RemoteError("no", where=dict(where))


def source(
    clock: Clock, inner: Failing, *, rng: Callable[[], float] = lambda: 1.0, policy: Policy | None = None
) -> RetryingSource:
    return retrying(inner, policy, clock=clock, sleep=clock.sleep, rng=rng)


def test_pauses_double_up_to_the_cap_and_the_last_error_comes_out() -> None:
    clock = Clock()
    inner = Failing(clock, [remote()] * 99)
    with pytest.raises(RemoteError) as caught:
        source(clock, inner).read("k", limit=9)
    assert clock.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert inner.reads == caught.value.where["tries"] == 8


def test_jitter_is_full() -> None:
    clock = Clock()
    draws = iter([0.0, 0.5, 1.0])
    assert source(clock, Failing(clock, [remote()] * 3), rng=lambda: next(draws)).read("k", limit=9) == b"body"
    assert clock.pauses == [0.0, 0.25, 1.0]


def test_no_try_starts_after_the_deadline() -> None:
    clock = Clock()
    inner = Failing(clock, [remote()] * 99, seconds=50.0)
    with pytest.raises(RemoteError):
        source(clock, inner).read("k", limit=9)
    assert inner.reads == 3
    assert clock.now < 120 + 50


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
def test_a_refusal_is_final(status: int) -> None:
    clock = Clock()
    inner = Failing(clock, [remote(status=status)] * 9)
    with pytest.raises(RemoteError):
        source(clock, inner).read("k", limit=9)
    assert inner.reads == 1


@pytest.mark.parametrize(
    "where", [{}, {"status": 500}, {"status": 503}, {"status": 429}, {"status": 400, "code": "ExpiredToken"}]
)
def test_what_may_pass_is_tried_again(where: dict[str, object]) -> None:
    clock = Clock()
    assert source(clock, Failing(clock, [remote(**where)] * 2)).read("k", limit=9) == b"body"


def test_throttling_waits_at_least_half_and_at_least_as_long_as_asked() -> None:
    clock = Clock()
    errors = [remote(status=503), remote(status=429, retry_after=5), remote(status=503, retry_after=9999)]
    source(clock, Failing(clock, errors), rng=lambda: 0.0).read("k", limit=9)
    assert clock.pauses == [0.125, 5.0, 30.0]


def test_wrong_bytes_are_read_three_times_and_then_reported() -> None:
    clock = Clock()
    inner = Failing(clock, [])

    def check(body: Buffer) -> None:
        raise IntegrityError("wrong digest")

    with pytest.raises(IntegrityError, match="wrong digest"):
        source(clock, inner).read("k", limit=9, check=check)
    assert inner.reads == 3


def test_an_object_of_the_wrong_size_is_not_read_again() -> None:
    clock = Clock()
    inner = Failing(clock, [lambda: IntegrityError("too large", where={"size": 99})] * 9)
    with pytest.raises(IntegrityError):
        source(clock, inner).read("k", limit=9)
    assert inner.reads == 1


def test_this_machines_own_trouble_is_not_retried() -> None:
    clock = Clock()
    inner = Failing(clock, [lambda: CapabilityError("no permission")] * 9)
    with pytest.raises(CapabilityError):
        source(clock, inner).read("k", limit=9)
    assert inner.reads == 1


def test_wrapping_twice_does_not_multiply_tries() -> None:
    clock = Clock()
    inner = Failing(clock, [remote()] * 99)
    with pytest.raises(RemoteError):
        retrying(source(clock, inner)).read("k", limit=9)
    assert inner.reads == 8


def test_a_pause_of_the_callers_own_is_kept_and_the_default_one_replaced() -> None:
    clock, waited = Clock(), Clock()
    own = source(clock, Failing(clock, [remote()]))
    interruptible(own, waited.sleep).read("k", limit=9)
    assert (len(clock.pauses), len(waited.pauses)) == (1, 0)
    interruptible(retrying(Failing(clock, [remote()])), waited.sleep).read("k", limit=9)
    assert len(waited.pauses) == 1
