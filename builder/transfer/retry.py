"""A source that tries again: bounded in tries and in time, with full jitter, and not where trying cannot help.

One pause is drawn evenly from [0, min(cap, base * 2**tries)] (full jitter: AWS Architecture Blog, "Exponential Backoff
And Jitter"), so that a thousand pods which failed together do not come back together. A throttled read (429, 503) waits
at least half of that, and at least the server's Retry-After where the source passes it on. The cap keeps the pauses from
growing to hours, which is how other clients were seen to hang.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from builder.errors import BuilderError, IntegrityError, RemoteError
from builder.transfer.checksum import Digests
from builder.transfer.source import Source, list_keys, stream

if TYPE_CHECKING:
    from builder.transfer.checksum import Buffer

_T = TypeVar("_T")
FIRST_S = 20.0  # a source that is silent for that long (Limits.silence_s) is asked at most once more
PERMANENT = frozenset({400, 401, 403, 404, 405, 410, 411, 412, 416, 501})  # 404: no such bucket; a missing object is no error
THROTTLED = frozenset({429, 503})
EXPIRED = frozenset({"ExpiredToken", "RequestTimeout", "TokenRefreshRequired"})  # 400 and 403 that a new try may mend


@dataclass(frozen=True)
class Policy:
    """tries: reads of one object at most.  deadline_s: no new try after this many seconds; a read under way is bounded
    by its source's own limits.  body_tries: reads of an object whose bytes were wrong: twice the same is the object,
    not the wire.

    Eight tries wait 24 s at most and 12 s on average; with 5 % of reads failing, one object in 2.5e10 fails them all.
    """

    tries: int = 8
    deadline_s: float = 120.0
    base_s: float = 0.25
    cap_s: float = 8.0
    body_tries: int = 3
    retry_after_cap_s: float = 30.0


class RetryingSource:
    """A source around another. Thread-safe when that one is."""

    def __init__(
        self,
        inner: Source,
        policy: Policy,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        rng: Callable[[], float],
        heard: Callable[[BuilderError], None] | None = None,
    ) -> None:
        """heard: called with every error that is tried again."""
        self.inner = inner
        self._heard = heard
        self.policy = policy
        self._clock = clock
        self._sleep = sleep
        self._rng = rng

    @property
    def url(self) -> str:
        return self.inner.url

    def keys(self, prefix: str) -> Iterable[str] | None:
        return self._retry(lambda: list_keys(self.inner, prefix))

    def read(self, key: str, *, limit: int, check: Callable[[Buffer], None] | None = None) -> Buffer | None:
        """As the inner source. check(body) raises IntegrityError on wrong bytes, which are then read again.

        The last error is raised as it came; its `where` gains `tries`.
        """

        def once() -> Buffer | None:
            body = self.inner.read(key, limit=limit)
            if check is not None and body is not None:
                check(body)
            return body

        return self._retry(once)

    def stream(
        self,
        key: str,
        window: memoryview,
        *,
        limit: int,
        check: Callable[[Digests], None],
        sha256: bool = True,
        write: Callable[[memoryview, int], None] | None = None,
    ) -> int | None:
        """The object in pieces through `window`, as source.stream. check(digests) raises IntegrityError on wrong bytes, which
        are then read again.

        sha256: whether the digests have it.  write(piece, offset): every piece as it comes, so before the check, and from
        offset 0 on again with every try; none reaches beyond `limit`.
        """

        def once() -> int | None:
            digests = Digests(with_sha256=sha256)

            def seen(piece: memoryview) -> None:
                at = digests.size
                if at + len(piece) > limit:
                    raise IntegrityError(f"{at + len(piece)} of {limit} bytes", where={"key": key})
                digests.update(piece)
                if write is not None:
                    write(piece, at)

            size = stream(self.inner, key, window, limit=limit, seen=seen)
            if size is not None:
                check(digests)
            return size

        return self._retry(once)

    def call(self, once: Callable[[], _T]) -> _T:
        """What `once`, a request of the inner source, returns; asked again as the others."""
        return self._retry(once)

    def _retry(self, once: Callable[[], _T]) -> _T:
        def told() -> _T:
            try:
                return once()
            except (RemoteError, IntegrityError) as exc:
                if self._heard:
                    self._heard(exc)
                raise

        return call(told if self._heard else once, self.policy, clock=self._clock, sleep=self._sleep, rng=self._rng)


def call(
    once: Callable[[], _T],
    policy: Policy,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    rng: Callable[[], float] = random.random,
) -> _T:
    """What `once` returns, which is called again as `policy` says. Its last error is raised as it came, with `tries`."""
    start, tries, wrong = clock(), 0, 0
    while True:
        try:
            return once()
        except (RemoteError, IntegrityError) as exc:
            tries += 1
            wrong += isinstance(exc, IntegrityError)
            exc.where["tries"] = tries
            pause = _pause(exc, tries, policy, rng)
            spent = clock() - start + pause
            hopeless = not is_transient(exc) or wrong >= policy.body_tries
            if hopeless or tries >= policy.tries or spent > policy.deadline_s:
                raise
        sleep(pause)


def _pause(exc: RemoteError | IntegrityError, tries: int, policy: Policy, rng: Callable[[], float]) -> float:
    if isinstance(exc, IntegrityError):  # it did answer: nothing that waiting would mend
        return 0.0
    top = min(policy.cap_s, policy.base_s * 2.0 ** (tries - 1))
    if exc.where.get("status") not in THROTTLED:
        return top * rng()
    asked = min(float(exc.where.get("retry_after", 0.0)), policy.retry_after_cap_s)
    return max(asked, top * (1 + rng()) / 2)


def is_transient(exc: RemoteError | IntegrityError) -> bool:
    """Whether another try may end differently."""
    if isinstance(exc, IntegrityError):
        return "size" not in exc.where  # an object of the wrong size in its own store stays so
    return exc.where.get("status") not in PERMANENT or exc.where.get("code") in EXPIRED


def retrying(
    source: Source,
    policy: Policy | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    rng: Callable[[], float] = random.random,
) -> RetryingSource:
    """`source`, tried again as `policy` says; one that retries already is returned as it is."""
    if isinstance(source, RetryingSource):
        return source
    return RetryingSource(source, policy or Policy(), clock, sleep, rng)


def first_request(source: Source) -> RetryingSource:
    """`source` for the first request of a command: as many tries, but a silent store, so often a mistyped address, fails
    after at most two silences. Errors that come at once are tried again as ever.
    """
    source = retrying(source)
    policy = replace(source.policy, deadline_s=min(source.policy.deadline_s, FIRST_S))
    return RetryingSource(source.inner, policy, source._clock, source._sleep, source._rng)


def interruptible(
    source: Source, wait: Callable[[float], None], heard: Callable[[BuilderError], None] | None = None
) -> RetryingSource:
    """`source`, tried again, pausing in `wait` instead of time.sleep; a sleep that its maker passed in is kept.

    heard: called with every error that is tried again.
    """
    source = retrying(source)
    sleep = wait if source._sleep is time.sleep else source._sleep
    return RetryingSource(source.inner, source.policy, source._clock, sleep, source._rng, heard)
