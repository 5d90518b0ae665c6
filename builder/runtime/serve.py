"""The container's main program: weights, engine, warm-up, ready; then wait, and end as the engine ends.

    bring_up    find or fetch the weights -> start the engine -> wait for its health check -> warm up -> open the gate
    beside it   the control port and the gate answer from the first moment; signals and the engine's end are watched;
                with BUILDER_GPU=required, a GPU that the image was not made for ends the start while the weights load

Exit code: the engine's own, 128 + n if a signal ended it; the cause's own when a step before failed. After a signal the
engine gets the same one, then `grace_s` seconds, then SIGKILL. Nothing it started outlives this process. What comes up
late, after the signal, changes nothing: it is not warmed up, the gate stays closed, /ready stays 503.

The lease on the model (transfer/lease.py) is held by this process and, through the inherited open file, by the engine: it
ends with the last of them, so no other pod evicts files that a dying engine still reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from builder.errors import BuilderError
from builder.format.phases import unaccounted
from builder.runtime import compiled, fingerprint, gpu, warmup
from builder.runtime.children import Child, Children
from builder.runtime.engines import Launch, check
from builder.runtime.gate import Gate
from builder.runtime.http import interface, listening, status_of
from builder.runtime.record import Recorder, log
from builder.runtime.settings import Settings, environment
from builder.runtime.weights import Found, find

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
POLL_S = 0.02  # between health checks of a starting engine; a refused connection costs 0.1 ms
PING_S = 2.0
TOUCH_S = 300.0  # how exact "last used" is for a server that is killed
FIRST_TOKEN_S = 600.0  # the first request may compile kernels for minutes

T = TypeVar("T")


@dataclass
class State:
    """What the control port reports. step: the last one entered, which is where a failure happened."""

    began: float
    step: str = "starting"
    ready_at: float = 0.0
    found: Found | None = None
    engine: Child | None = None
    engine_host: str = "127.0.0.1"
    engine_port: int = 0
    shapes: list[warmup.Shape] = field(default_factory=list)
    captured: compiled.Installed = field(default_factory=compiled.Installed)
    fresh: compiled.Fresh | None = None

    @property
    def ready(self) -> bool:
        return self.step == "ready"


class Serve:
    """One start, from the settings to the exit code. Everything but `find` and the warm-up runs on the event loop."""

    def __init__(self, settings: Settings, recorder: Recorder, began: float) -> None:
        self.settings, self.recorder = settings, recorder
        self.state = State(began)
        self.engine = check(settings.engine, settings.engine_args)
        self.state.engine_port = _free_port() if settings.queue else settings.port
        self.gate = Gate(settings.queue_limit, self.state.engine_port, self.engine.protocol) if settings.queue else None
        if not settings.queue and settings.host not in ("0.0.0.0", "::"):
            self.state.engine_host = settings.host

    async def run(self) -> int:
        """Until the engine has ended. Raises BuilderError if a step fails; the engine is gone then too."""
        from builder.runtime.control import Control

        self.children = Children()
        self.stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        for number in STOP:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        await Control(self).listen()
        if self.gate:
            await self.gate.listen(self.settings.host, self.settings.port)
        else:
            await self._claim_port()
        up, using = asyncio.ensure_future(self._bring_up()), asyncio.ensure_future(self._using())
        try:
            both: list[asyncio.Future[Any]] = [up, self.stopped]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not self.stopped.done():
                up.result()
                await self.stopped
            await _cancel(up)
            return await self._end()
        finally:
            await _cancel(up)
            await _cancel(using)
            if self.gate:
                self.gate.close(f"failed during step {self.state.step!r}")
                await self.gate.flushed()
            if self.state.engine:
                self.state.engine.kill_group()
            if self.state.found:
                self.state.found.lease.release()
            # The event loop closes its wakeup socket before it forgets its handlers: a child that ends in between would
            # have the interpreter print a BrokenPipeError. Nothing listens for signals from here on.
            signal.set_wakeup_fd(-1)

    async def _using(self) -> None:
        """Notes now and then that the model is in use, for whoever evicts the longest unused one after a kill."""
        while True:
            await asyncio.sleep(TOUCH_S)
            if self.state.found:
                self.state.found.lease.touch()

    async def _claim_port(self) -> None:
        """Without a gate the engine opens the public port itself: is it free? Else its owner would pass for the engine.

        Raises CapabilityError if the port is taken or may not be opened, ConfigError if the host is not this machine.
        """
        host, port = self.settings.host, self.settings.port
        with listening(host, port, "BUILDER_PORT"):  # bound and closed again, never listened on
            server = await asyncio.get_running_loop().create_server(
                asyncio.Protocol, interface(host), port, start_serving=False
            )
        server.close()

    async def _bring_up(self) -> None:
        driver = self._driver()
        accepted = asyncio.ensure_future(self._accept(driver))
        timing = asyncio.ensure_future(self._time(driver, accepted))
        weights = asyncio.ensure_future(self._weights())
        try:
            await asyncio.wait({accepted, weights}, return_when=asyncio.FIRST_EXCEPTION)
            for step in (accepted, weights):
                if step.done():
                    step.result()
            found = weights.result()
            if not self.stopped.done():
                await self._compile_cache(found, accepted.result())
                child = await self._start(found)
                await self._warmed(child, found)
                if not child.ended.done():
                    await self._compiled()
                    self._ready()
        finally:
            for task in (weights, accepted, timing):
                await _cancel(task)
            if driver:
                driver.close()

    async def _warmed(self, child: Child, found: Found) -> None:
        """The warm-up, unless the engine ends first. Raises BuilderError if the living engine does not answer."""
        warm = asyncio.ensure_future(self._warm(found))
        try:
            either: list[asyncio.Future[Any]] = [warm, child.ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if warm.done() and warm.exception():  # a dying engine breaks its connections first, and its exit code says more
                await asyncio.wait({child.ended}, timeout=1.0)
            if not child.ended.done():
                warm.result()
        finally:
            await _cancel(warm)

    async def _weights(self) -> Found:
        self._enter("weights")
        start = time.time()
        found = self.state.found = await _in_thread(lambda: find(self.settings))
        end = time.time()
        detail = {"bytes": found.manifest.size, "fetched_bytes": found.fetched_bytes, "digest": found.digest}
        if found.first_layers_s is not None:
            self.recorder.add("weights_first_layers", start, min(end, start + found.first_layers_s))
        self.recorder.add("weights_all", start, end, {**detail, "origin": found.origin})
        did = "fetched and verified" if found.fetched_bytes else "here"
        log(
            "weights",
            f"{found.manifest.name}: {found.manifest.size / 2**20:.1f} MiB {did} in {end - start:.1f} s ({found.origin})",
        )
        return found

    async def _compile_cache(self, found: Found, driver: gpu.Found | None) -> None:
        """A captured compile cache where the engine looks, if one is for this stack. Raises BuilderError if one must be."""
        self._enter("compile cache")
        settings, start = self.settings, time.time()
        if settings.compile_cache == "off" or (settings.compile_cache_root is None and settings.compile_cache != "require"):
            return
        chosen = settings.named(found.manifest.name)
        mine = await _in_thread(lambda: fingerprint.here(chosen, found.manifest.name, found.digest, driver))
        done = self.state.captured = await _in_thread(lambda: compiled.install(chosen, mine))
        self.recorder.add("compile_cache", start, time.time(), done.to_json())

    async def _compiled(self) -> None:
        """After the warm-up: what the engine compiled all the same."""
        done = self.state.captured
        new = self.state.fresh = await _in_thread(lambda: compiled.fresh(done))
        if new and new.files:
            should = {
                "hit": ", though the captured cache is for this stack",
                "kept": ", though this stack has started here before",
            }
            log(compiled.STEP, f"compiled {new}{should.get(done.result, '')}")

    async def _start(self, found: Found) -> Child:
        """The engine, healthy; or ended, which the caller sees. Raises BuilderError if it stays silent too long."""
        self._enter("engine")
        settings, port = self.settings, self.state.engine_port
        host = "127.0.0.1" if self.gate else settings.host
        command = self.engine.command(Launch(found.folder, found.manifest, host, port, settings.engine_args, settings.gpu))
        with self.recorder.phase("engine_init") as detail:
            keep = () if found.lease.fd is None else (found.lease.fd,)
            env = environment({**self.state.captured.env, **command.env})
            child = self.state.engine = self.children.spawn(command.argv, cwd=command.cwd, keep=keep, env=env)
            detail.update(engine=settings.engine, pid=child.pid, environment=dict(settings.reported))
            log("engine", f"{settings.engine} started, process {child.pid}")
            child.ended.add_done_callback(lambda _: self._engine_ended(child))
            deadline = time.monotonic() + settings.ready_timeout_s
            while not child.ended.done() and not await self.healthy():
                if time.monotonic() > deadline:
                    raise BuilderError(
                        f"the engine did not answer {self.engine.health} with 200 within {settings.ready_timeout_s:.0f} s",
                        hint="see its log above; BUILDER_READY_TIMEOUT_S gives it longer",
                    )
                await asyncio.wait({child.ended}, timeout=POLL_S)
            if child.ended.done():
                await asyncio.Event().wait()  # `_engine_ended` ends the run; this phase never finished
        return child

    async def _warm(self, found: Found) -> None:
        """Ends early once stopped: what is left of the engine's time belongs to the requests it still serves."""
        if self.stopped.done():
            return
        self._enter("warm-up")
        settings, name, host = self.settings, found.manifest.name, self.state.engine_host
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.state.engine_port}"
        protocol = self.engine.protocol
        with self.recorder.phase("first_token") as detail:
            detail.update(await _in_thread(lambda: warmup.first_token(url, name, timeout_s=FIRST_TOKEN_S, protocol=protocol)))
        if self.stopped.done():
            return

        def clock() -> float:  # read by the warm-up's own thread, which nothing can cancel
            return math.inf if self.stopped.done() else time.monotonic()

        start = time.time()
        batch, tokens, budget_s = settings.warmup_batch, settings.warmup_tokens, settings.warmup_s
        level = warmup.level_of(protocol)
        shapes = await _in_thread(lambda: warmup.warm(url, name, batch, tokens, budget_s=budget_s, clock=clock, level=level))
        if self.stopped.done():
            return
        self.recorder.add("stable", start, time.time(), {"shapes": [shape.to_json() for shape in shapes]})
        self.state.shapes = shapes
        for shape in shapes:
            if shape.error:
                log("warm-up", f"{shape.batch} x {shape.tokens} tokens: {shape.error}")
            elif not shape.settled:
                log("warm-up", f"{shape.batch} x {shape.tokens} tokens: still falling after {shape.rounds} rounds")

    def _ready(self) -> None:
        if self.stopped.done():
            return
        self._enter("ready")
        self.state.ready_at = now = time.time()
        if self.gate:
            self.gate.open()
        gap = unaccounted(self.recorder.phases, self.state.began, now)
        log("ready", f"{now - self.state.began:.1f} s after the process began, {gap:.1f} s of them in no phase")

    def _driver(self) -> gpu.Driver | None:
        """The driver to ask, in a process of its own; None where nobody wants to know."""
        wanted = {"required": True, "none": False}.get(self.settings.gpu, gpu.visible())
        self._asked = time.time()
        return gpu.Driver(self.children) if wanted else None

    async def _accept(self, driver: gpu.Driver | None) -> gpu.Found | None:
        """What is here. Raises CapabilityError if the image needs a GPU, and cannot run on it."""
        if driver is None:
            return None
        found = await driver.found(self.settings.gpu_timeout_s)
        if self.settings.gpu == "required" and (refused := gpu.refusal(found, self.settings)):
            self._enter("gpu")
            raise refused
        return found

    async def _time(self, driver: gpu.Driver | None, accepted: asyncio.Future[gpu.Found | None]) -> None:
        """The phase cuda_init, beside the weights. The engine's own context comes on top."""
        if driver is None:
            return
        await asyncio.wait({accepted})
        if not accepted.cancelled() and not accepted.exception():
            detail = await driver.timing(self.settings.gpu_timeout_s)
            self.recorder.add("cuda_init", self._asked, time.time(), {**detail, "process": "probe"})

    async def healthy(self) -> bool:
        """True if the engine's health path answers 200 within 2 s. It runs no inference."""
        try:
            return await status_of(self.state.engine_host, self.state.engine_port, self.engine.health, timeout_s=PING_S) == 200
        except (OSError, ValueError):
            return False

    def _enter(self, step: str) -> None:
        """The last step stays: "stopping" or "failed"."""
        if not self.stopped.done():
            self.state.step = step

    def _stop(self, number: int) -> None:
        """First signal: remember it, refuse new work, pass it on. Every further one is passed on too."""
        if not self.stopped.done():
            log("stop", f"{signal.Signals(number).name} during step {self.state.step!r}")
            self._enter("stopping")
            self.stopped.set_result(128 + number)
            if self.gate:
                self.gate.close("stopping")
        if self.state.engine:
            self.state.engine.send(number)

    def _engine_ended(self, child: Child) -> None:
        code = child.ended.result()
        if not self.stopped.done():
            log("engine", f"ended by itself with exit code {code} during step {self.state.step!r}")
            self._enter("failed")
            self.stopped.set_result(code)

    async def _end(self) -> int:
        """The engine's exit code, once it has ended; the signal's own if there was no engine yet."""
        if self.gate:
            self.gate.close("the engine has ended" if self.state.step == "failed" else "stopping")
        engine = self.state.engine
        if engine is None:
            return self.stopped.result()
        if not engine.ended.done():
            await asyncio.wait({engine.ended}, timeout=self.settings.grace_s)
        if not engine.ended.done():
            log("stop", f"the engine still runs after {self.settings.grace_s:g} s; killing it")
            engine.kill_group()
        return await engine.ended


def serve(settings: Settings, recorder: Recorder, began: float) -> int:
    """Run the server to its end; the exit code. Raises BuilderError if a step fails."""

    async def main() -> int:
        return await Serve(settings, recorder, began).run()

    return asyncio.run(main())


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End `task`, and wait until it has ended; what it raised, if it had ended before, is dropped."""
    while not task.done():  # until Python 3.12, wait_for() loses a cancel that comes as its own work ends
        task.cancel()
        await asyncio.wait({task}, timeout=POLL_S)
    if not task.cancelled():
        task.exception()


async def _in_thread(work: Callable[[], T]) -> T:
    """`work()` in a daemon thread: it may be abandoned, where an executor's thread would hold up the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - handed to the waiting coroutine, which raises it
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _free_port() -> int:
    """A port that is free on the loopback interface now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
