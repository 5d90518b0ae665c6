"""Tasks on the nodes of a Ray cluster, one CPU each. The only module that knows Ray.

What is to be done and each task are pickled; workers must have the same builder. A BuilderError comes back as it was
raised, and is not tried again. Where a node or a worker process is lost, Ray runs its tasks again on what is left.

Ray prints what happens to its nodes to stdout while a session is open, and has no switch for that: a command that shows its
result there turns the stream away until then.
"""

from __future__ import annotations

import logging
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from builder import __version__
from builder.engines.base import Cluster
from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError

if TYPE_CHECKING:
    from ray import ObjectRef

Task = TypeVar("Task")
Result = TypeVar("Result")

HERE = "auto"  # RAY_ADDRESS, or the cluster that this machine is a node of
CONNECT_S = 180.0  # ray.init itself waits for minutes where nothing answers
REACH_S = 10.0
CPU_S = 600.0  # to the first free CPU: a cluster that grows on demand boots a machine in this time
POLL_S = 5.0
STOP_S = 30.0  # a worker ends the chunk under way
LOSSES = 8  # of one task's worker, before it is given up: a task that kills its worker would otherwise go on for ever
PER_CPU = 2  # tasks given to Ray for each CPU: one runs, one is at hand
_INSTALL = f"install coldstart-builder {__version__} in the Python of every node"


class RayEngine(Cluster):
    """Uses the session that this process has, or opens one for the length of a `map`.

    address: what ray.init takes: "auto", host:port of a cluster's head, or ray://host:port of its client server.
    """

    def __init__(self, address: str = HERE, *, threads: int = 8) -> None:
        self.address, self.threads = address, threads

    @property
    def concurrency(self) -> int:
        """Follows the cluster as it grows and shrinks."""
        return max(1, PER_CPU * int(self._connected().cluster_resources().get("CPU", 0)))

    def map(self, do: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | BuilderError]]:
        """See Engine.map. `do` and the tasks are pickled.

        Raises RemoteError where the cluster cannot be reached within CONNECT_S, or has no CPU for CPU_S.
        """
        ray = _library()
        own = not ray.is_initialized()
        try:
            yield from self._map(self._connected(), do, tasks)
        finally:
            if own:
                ray.shutdown()

    def _map(
        self, ray: Any, do: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, Result | BuilderError]]:
        run = ray.remote(_perform).options(num_cpus=1, max_retries=LOSSES, scheduling_strategy="SPREAD")
        work = ray.put(ray.cloudpickle.dumps(do))
        running: dict[ObjectRef[Any], Task] = {}
        room = self.concurrency
        try:
            for task in tasks:
                running[run.remote(work, ray.cloudpickle.dumps(task), __version__)] = task
                if len(running) >= room:
                    yield from self._finished(running)
                    room = self.concurrency
            while running:
                yield from self._finished(running)
        finally:
            _cancel(ray, list(running))

    def _finished(self, running: dict[ObjectRef[Any], Any]) -> Iterator[tuple[Any, Any]]:
        ray = self._connected()
        done: list[ObjectRef[Any]] = []
        had_cpu = time.monotonic()
        while not done:
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            if ray.cluster_resources().get("CPU", 0):
                had_cpu = time.monotonic()
            elif not done and time.monotonic() - had_cpu > CPU_S:
                raise _no_cpu(ray)
        for ref in done:
            yield running.pop(ref), _result(ray, ref)

    def _connected(self) -> Any:
        ray = _library()
        if not ray.is_initialized():
            _connect(ray, self.address)
            _greet(ray)
        return ray


def _perform(work: bytes, task: bytes, version: str) -> Any:
    """On a worker: the result, or the BuilderError."""
    node = platform.node()
    if version != __version__:
        return ConfigError(
            f"Ray node {node}: builder is {__version__} there, {version} here", hint=_INSTALL, where={"node": node}
        )
    try:
        from ray import cloudpickle

        return cloudpickle.loads(work)(cloudpickle.loads(task))
    except BuilderError as exc:
        exc.where.setdefault("node", node)
        return exc
    except ImportError as exc:
        return ConfigError(f"Ray node {node}: {exc}", hint=_INSTALL, where={"node": node})


def _result(ray: Any, ref: ObjectRef[Any]) -> Any:
    """What the task returned, a BuilderError among it. Raises what no task should: a fault of this program."""
    errors = ray.exceptions
    try:
        return ray.get(ref)
    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError) as exc:
        what = f"a Ray worker was lost, again after {LOSSES} retries: {_first_line(exc)}"
        return RemoteError(what, hint="check the memory of the nodes, lower --memory, and run again")
    except errors.RayTaskError as exc:
        if "failed to import on the worker" in str(exc) or isinstance(exc.cause, ImportError):
            return ConfigError(f"a Ray node cannot run builder: {_last_line(exc)}", hint=_INSTALL)
        raise
    except errors.RayError as exc:
        return RemoteError(f"Ray: {_first_line(exc)}", hint="run again; what is already there is not sent twice")


def _cancel(ray: Any, running: list[ObjectRef[Any]]) -> None:
    """Stop what is under way: gently, then not."""
    for ref in running:
        ray.cancel(ref)
    if running:
        _, left = ray.wait(running, num_returns=len(running), timeout=STOP_S)
        for ref in left:
            ray.cancel(ref, force=True)


def _library() -> Any:
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError as exc:
        raise CapabilityError(
            f"--engine ray needs Ray: {exc}", hint="run `pip install 'coldstart-builder[ray]'`", where={"module": "ray"}
        ) from exc
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join the cluster. In a thread: ray.init waits for minutes where nothing answers, and cannot be told not to."""
    _require_open(address)
    done: Future[None] = Future()

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            done.set_result(None)
        except (OSError, RuntimeError, ValueError, SystemExit, ray.exceptions.RayError) as exc:
            done.set_exception(exc)

    threading.Thread(target=join, name="ray-connect", daemon=True).start()
    hint = "start it with `ray start`, or give its address: --engine ray://HOST:10001"
    try:
        done.result(CONNECT_S)
    except TimeoutError as exc:
        raise RemoteError(f"Ray at {address}: no answer within {CONNECT_S:.0f} s", hint=hint) from exc
    except RuntimeError as exc:
        if "ersion mismatch" not in str(exc):
            raise RemoteError(f"Ray at {address}: {exc}", hint=hint) from exc
        raise ConfigError(f"Ray at {address}: {exc}", hint="use the cluster's versions of Ray and Python here") from exc
    except (ValueError, ImportError) as exc:
        raise ConfigError(f"Ray at {address}: {exc}", hint="run `pip install 'coldstart-builder[ray]'`") from exc
    except (OSError, SystemExit, ray.exceptions.RayError) as exc:
        raise RemoteError(f"Ray at {address}: {_first_line(exc)}", hint=hint) from exc


def _require_open(address: str) -> None:
    """A port that nobody listens on shows at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    if not port.isdigit():
        raise ConfigError(f"Ray at {address}: expected host:port", hint="the head's port is 6379, its client server's 10001")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as exc:
        raise RemoteError(f"Ray at {address}: {exc}", hint="check the address, and that the head node runs") from exc


def _greet(ray: Any) -> None:
    """One empty task: the cluster has a CPU for us, and a worker there can run builder."""
    hello = ray.remote(_perform).options(num_cpus=1, max_retries=LOSSES)
    ref = hello.remote(ray.cloudpickle.dumps(bool), ray.cloudpickle.dumps(0), __version__)
    done, _ = ray.wait([ref], timeout=CPU_S)
    if not done:
        ray.cancel(ref)
        raise _no_cpu(ray)
    found = _result(ray, ref)
    if isinstance(found, BuilderError):
        raise found


def _no_cpu(ray: Any) -> RemoteError:
    free, there = (int(found.get("CPU", 0)) for found in (ray.available_resources(), ray.cluster_resources()))
    return RemoteError(
        f"Ray: no free CPU within {CPU_S:.0f} s: {free} of {there} CPUs in {len(ray.nodes())} nodes are free",
        hint="add nodes, or wait until other jobs have ended",
    )


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


def _last_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[-1]
