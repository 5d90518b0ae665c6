"""The built image, started by testcontainers on the Docker engine, with its ports on loopback and nothing left behind.

testcontainers would first start its reaper (Ryuk), whose image must be pulled; here the container is removed by context
manager instead, so the reaper is off, in this process alone. Credentials go through the API's body, never into a
command line, a log or a report. The container is the proof's subject: its ENV is left as built, but for where the
weights are.

A store on this host's loopback address is another machine inside a container. If it also listens on the bridge's
gateway address, the container reaches it as host.docker.internal; otherwise the container shares the host's network.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from builder.errors import BuilderError, CapabilityError
from builder.format.compiled import ROOT as COMPILED
from builder.format.volume import MODELS_ROOT
from builder.verify import host, inside
from builder.verify.in_place import free_ports
from builder.verify.launch import LOOPBACK, Launch, is_loopback, redact, store_environment, with_host
from builder.verify.report import ImageFacts
from builder.verify.server import LOG_LINES

if TYPE_CHECKING:
    from docker import DockerClient
    from testcontainers.core.container import DockerContainer

GATEWAY = "host.docker.internal"
STORE_INSIDE = "/var/lib/builder/store"
PYTHON = "/opt/venv/bin/python"
NO_GPU = re.compile(r"could not select device driver|nvidia-container-cli|unknown or invalid runtime", re.IGNORECASE)
CONNECT_S = 2.0
COMPRESSED = "compressed, as a registry holds it"
UNPACKED = "unpacked: an upper bound, this engine keeps no compressed layers"
ENGINE_HINT = "`make engine` installs one; or verify --in-place, without an image"


@dataclass(frozen=True)
class Options:
    """How the container is run. memory, shm: as Docker writes sizes ("8g"), None for its defaults.

    gpu: "auto", "required" or "none".  read_only: the root file system; /tmp, the cache root and the models stay writable.
    env: variables that replace the image's own, to see what an operator's setting does to its claims.
    """

    gpu: str = "auto"
    memory: str | None = None
    shm: str | None = None
    read_only: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


class Container:
    """A running container. Satisfies `Server`."""

    def __init__(
        self, box: DockerContainer, launch: Launch, *, host: str, ports: tuple[int, int], asked: float, gpu: bool
    ) -> None:
        self.box, self.launch, self.gpu = box, launch, gpu
        self.host, (self.port, self.control_port), self.asked = host, ports, asked
        self.notes: list[str] = []

    def started(self) -> float:
        """When its first process existed, as the engine recorded it (State.StartedAt)."""
        state = self._state()
        return max(self.asked, _epoch(state["StartedAt"]))

    def ended(self) -> str | None:
        state = self._state()
        if state["Running"]:
            return None
        if state.get("OOMKilled"):
            return "killed: out of memory"
        return f"exit status {state['ExitCode']}" + (f" ({state['Error']})" if state.get("Error") else "")

    def logs(self, lines: int = LOG_LINES) -> str:
        return redact(self.box.get_wrapped_container().logs(tail=lines).decode(errors="replace"), self.launch)

    def look(self) -> dict[str, Any]:
        done = self.box.get_wrapped_container().exec_run([PYTHON, "-c", inside.SCRIPT, MODELS_ROOT, "1"])
        return inside.parse(done.output or b"")

    def _state(self) -> dict[str, Any]:
        container = self.box.get_wrapped_container()
        container.reload()
        return dict(container.attrs["State"])


@contextlib.contextmanager
def start(reference: str, launch: Launch, options: Options | None = None) -> Iterator[Container]:
    """The image `reference`, running; removed on the way out, also after an error or Ctrl-C.

    Raises CapabilityError: no engine, no such image, a GPU required that is not there. BuilderError: the engine refused.
    """
    options = options or Options()
    with client() as engine, contextlib.ExitStack() as stack:
        with _engine_errors(reference, launch):
            image_facts(engine, reference)
            server = _enter(stack, engine, reference, launch, options)
        yield server


def _enter(stack: contextlib.ExitStack, engine: DockerClient, reference: str, launch: Launch, options: Options) -> Container:
    """The server, its removal left to `stack`. Where a GPU may be used but the engine cannot give it: without, and noted."""
    import docker.errors

    if not wants_gpu(options.gpu):
        return stack.enter_context(_run(engine, reference, launch, options, gpu=False))
    try:
        return stack.enter_context(_run(engine, reference, launch, options, gpu=True))
    except docker.errors.APIError as exc:
        if not NO_GPU.search(str(exc)):
            raise
        if options.gpu == "required":
            raise CapabilityError(
                f"verify.gpu is required; the Docker engine cannot give one: {exc.explanation}",
                hint="install nvidia-container-toolkit and run `nvidia-ctk runtime configure`",
            ) from exc
    server = stack.enter_context(_run(engine, reference, launch, options, gpu=False))
    server.notes.append("This machine has a GPU, but its Docker engine cannot give it to a container: none was used.")
    return server


@contextlib.contextmanager
def client() -> Iterator[DockerClient]:
    """A client of the engine. Raises CapabilityError when none answers."""
    import docker
    import docker.errors

    try:
        engine = docker.from_env()
        engine.ping()
    except (docker.errors.DockerException, OSError) as exc:
        raise CapabilityError(f"no Docker engine answers: {exc}", hint=ENGINE_HINT) from exc
    try:
        yield engine
    finally:
        engine.close()


def engine_version(engine: DockerClient) -> str:
    return str(engine.version()["Version"])


def image_facts(engine: DockerClient, reference: str) -> ImageFacts:
    """What the engine says of the image. Raises CapabilityError when it is not there; nothing is ever pulled."""
    import docker.errors

    try:
        attrs = engine.images.get(reference).attrs
    except docker.errors.ImageNotFound as exc:
        raise CapabilityError(f"{reference}: no such image on this engine", hint="builder build makes it") from exc
    digests = [d.partition("@")[2] for d in attrs.get("RepoDigests") or []]
    digest = digests[0] if digests else attrs["Id"]
    return ImageFacts(reference, digest, int(attrs["Size"]), COMPRESSED if _keeps_compressed(engine) else UNPACKED)


def _keeps_compressed(engine: DockerClient) -> bool:
    """Whether Size of this engine is what a registry would hold (measured: Docker 26.1 with the containerd image store

    gives exactly the sum of the image's blobs) and not, as with the classic store, the unpacked files.
    """
    return any("io.containerd.snapshotter" in str(value) for value in engine.info().get("DriverStatus") or [])


def wants_gpu(setting: str) -> bool:
    """Whether to ask for a GPU. Raises CapabilityError where one is required and the driver lists none."""
    if setting == "none":
        return False
    there = bool(host.gpus())
    if setting == "required" and not there:
        raise CapabilityError(
            "verify.gpu is required, but this machine has no NVIDIA GPU (nvidia-smi lists none)",
            hint="run on a GPU machine, or set verify.gpu: auto",
        )
    return there


@contextlib.contextmanager
def _run(engine: DockerClient, reference: str, launch: Launch, options: Options, *, gpu: bool) -> Iterator[Container]:
    launch, network, note = _reachable(engine, launch)
    box = _box(reference, launch, options, network=network, gpu=gpu)
    inner = launch.serve.port, launch.serve.control_port
    address, published = "127.0.0.1", ""
    if network.get("network") == "host":
        ports = free_ports()
        box.with_envs(BUILDER_HOST=address, BUILDER_PORT=str(ports[0]), BUILDER_CONTROL_PORT=str(ports[1]))
    else:
        published, address = _addresses(engine)
        box.ports.update({str(port): (published, None) for port in inner})  # type: ignore[misc]  # as docker-py takes it
    asked = time.time()
    with contextlib.closing(box.get_docker_client().client), box:
        if network.get("network") != "host":
            ports = _port(box, inner[0]), _port(box, inner[1])
        server = Container(box, launch, host=address, ports=ports, asked=asked, gpu=gpu)
        server.notes += [note] if note else []
        yield server


def _box(reference: str, launch: Launch, options: Options, *, network: dict[str, Any], gpu: bool) -> DockerContainer:
    """The testcontainers box, not started and without ports."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    testcontainers_config.ryuk_disabled = True  # see the top of this file
    testcontainers_config.hub_image_name_prefix = ""  # the image is named in full; a user's prefix would rename it
    box = DockerContainer(reference).with_kwargs(**network, **_limits(options, gpu=gpu, models=bool(launch.models)))
    box.with_envs(**_environment(launch, options, gpu=gpu))
    if launch.store_is_folder:
        box.with_envs(BUILDER_STORE=STORE_INSIDE)
        box.with_volume_mapping(str(Path(launch.store).resolve()), STORE_INSIDE, "ro")
    if launch.models:
        box.with_volume_mapping(str(Path(launch.models).resolve()), MODELS_ROOT, "ro")
    return box


def _addresses(engine: DockerClient) -> tuple[str, str]:
    """Where the engine publishes the ports, and where this process reaches them: loopback, if that is the same loopback.

    testcontainers guesses from /.dockerenv, which also exists where a machine was made from an image and runs its own
    engine. Here the bridge's address decides: if it is not ours either, this process is in a container beside the new one.
    """
    remote = urlsplit(engine.api.base_url).hostname
    if engine.api.base_url.startswith(("http://", "https://")) and remote and remote not in LOOPBACK:
        return "0.0.0.0", remote
    gateway = _gateway(engine)
    in_container = any(Path(p).exists() for p in ("/.dockerenv", "/run/.containerenv"))
    if in_container and gateway and not _ours(gateway):
        return gateway, gateway
    return "127.0.0.1", "127.0.0.1"


def _ours(address: str) -> bool:
    """Whether `address` is one of this network namespace."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _port(box: DockerContainer, inner: int) -> int:
    """The published port of the container's `inner`."""
    container = box.get_wrapped_container()
    container.reload()
    bindings = container.attrs["NetworkSettings"]["Ports"].get(f"{inner}/tcp") or []
    if not bindings:
        state = container.attrs["State"]
        said = container.logs(tail=LOG_LINES).decode(errors="replace").strip()
        lines = "".join(f"\n  | {line}" for line in said.splitlines())
        raise BuilderError(f"the container ended at once, with exit status {state['ExitCode']}{lines or ' and no output'}")
    return int(bindings[0]["HostPort"])


def _environment(launch: Launch, options: Options, *, gpu: bool) -> dict[str, str]:
    """Where the weights are; and, where no GPU is given, that none is needed: an image for GPUs refuses to start without."""
    return store_environment(launch) | ({} if gpu else {"BUILDER_GPU": "none"}) | dict(options.env)


def _limits(options: Options, *, gpu: bool, models: bool) -> dict[str, Any]:
    from docker.types import DeviceRequest, Mount

    out: dict[str, Any] = {}
    if options.memory:
        out["mem_limit"] = options.memory
    if options.shm:
        out["shm_size"] = options.shm
    if options.read_only:
        out["read_only"] = True
        out["mounts"] = [
            Mount("/tmp", None, type="tmpfs"),
            Mount(COMPILED, None, type="volume"),  # a tmpfs of Docker is noexec, and compiled code is loaded from it
            *([] if models else [Mount(MODELS_ROOT, None, type="volume")]),
        ]
    if gpu:
        out["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return out


def _reachable(engine: DockerClient, launch: Launch) -> tuple[Launch, dict[str, Any], str]:
    """The launch as seen from inside, the network it needs, and a note for the reader of the report."""
    address = launch.endpoint_url or (launch.store if launch.store.startswith("http") else None)
    if not is_loopback(address):
        return launch, {}, ""
    port = urlsplit(address or "").port or 443
    desktop = "desktop" in str(engine.info().get("OperatingSystem", "")).lower()
    if desktop or _listens(_gateway(engine), port):
        return with_host(launch, GATEWAY), {"extra_hosts": {GATEWAY: "host-gateway"}}, ""
    note = f"The store {address} listens on loopback only; the container shares the host's network to reach it."
    return launch, {"network": "host"}, note


def _gateway(engine: DockerClient) -> str:
    """The bridge's own address on this host; "" when the engine has no bridge network."""
    import docker.errors

    try:
        config = engine.networks.get("bridge").attrs["IPAM"]["Config"]
        return str(config[0].get("Gateway", "")) if config else ""
    except (docker.errors.APIError, KeyError, IndexError):
        return ""


def _listens(address: str, port: int) -> bool:
    if not address:
        return False
    try:
        with socket.create_connection((address, port), timeout=CONNECT_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _engine_errors(reference: str, launch: Launch) -> Iterator[None]:
    """Whatever the engine or the client library refuses, as an error of ours, secrets hidden."""
    import docker.errors
    from testcontainers.core.exceptions import ContainerConnectException, ContainerStartException

    refused = (docker.errors.DockerException, ContainerStartException, ContainerConnectException, OSError)
    try:
        yield
    except refused as exc:
        raise BuilderError(
            f"{reference}: the Docker engine refused to run it: {redact(str(exc), launch)}",
            hint="docker info; docker events --since 5m",
        ) from exc


def _epoch(stamp: str) -> float:
    """Seconds since the epoch of the engine's RFC 3339 time, which has nine decimals (datetime takes six).

    >>> _epoch("1970-01-01T00:00:01.500000000Z")
    1.5
    """
    text = re.sub(r"(\.\d{6})\d+", r"\1", stamp).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(text).timestamp()
