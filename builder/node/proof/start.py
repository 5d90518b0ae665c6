"""One pod per image, through the CRI: as its own user, with no network and no pull, weights mounted where the runtime looks.

The pod takes the network namespace of the node, which here is that of the private containerd: a loopback and nothing else
(builder.node.cri_config). Nothing says which user to be or what to run but the image, and the arguments that were asked for.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.node.proof import api
from builder.node.proof.cri import Cri
from builder.node.proof.references import by_digest
from builder.node.proof.report import START, ContainerRun, Notes
from builder.node.targets import MODELS

POLL_S = 0.02
TAIL = 2000
LOG = "container.log"
_NAMESPACES = {"network": api.NODE, "pid": api.OWN}
_LINE = re.compile(rb"\S+ (?:stdout|stderr) ([FP])\S* ")  # kubelet's log format: time, stream, full or partial


@dataclass(frozen=True, slots=True)
class Order:
    """What to start and with what. root: the mounted volume. logs: an empty folder. run_s: seconds until it is ended."""

    root: Path
    logs: Path
    run: tuple[str, ...] | None
    run_s: float


def start(cri: Cri, image: dict[str, Any], order: Order, notes: Notes) -> list[ContainerRun]:
    """Start the image by digest and wait for its end. Adds what is wrong to the notes; returns the run if it is as claimed."""
    name, arguments = f"{START}{image['reference']}", command(image, order.run)
    if arguments is None:
        notes.add(name, "", ["its entry point is not known to end by itself; say what to run with --run"])
        return []
    try:
        code, run = _pod(cri, image, arguments, order)
    except BuilderError as exc:
        notes.add(name, "", [exc.message])
        return []
    findings = [f"exit status {code}{_indented(run.output)}"] if code else []
    if _ours(image) and run.user.split(":")[0] == "0":
        findings.append(f"runs as {run.user}, expected another user than root")
    wanted = image["user"].partition(":")[0] or "0"
    if wanted.isdigit() and run.user.split(":")[0] != wanted:
        findings.append(f"runs as {run.user}, the image says {image['user'] or 'nothing, so root'}")
    notes.add(name, f"exit 0 as {run.user}, no network, no pull", findings)
    return [] if findings else [run]


def command(image: dict[str, Any], asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Arguments for the entry point. Default: --help for this project's images, /bin/true where there is none."""
    if asked is not None:
        return asked
    if _ours(image):
        return ("--help",)
    return None if image["entrypoint"] else ("/bin/true",)


def _pod(cri: Cri, image: dict[str, Any], arguments: tuple[str, ...], order: Order) -> tuple[int, ContainerRun]:
    """(exit status, the run). Whatever happens, the pod is gone at the end."""
    order.logs.mkdir(parents=True, exist_ok=True)
    (order.logs / LOG).unlink(missing_ok=True)
    pod = {
        "metadata": {"name": "proof", "uid": str(uuid.uuid4()), "namespace": "builder"},
        "log_directory": str(order.logs),
        "linux": {"security_context": {"namespace_options": _NAMESPACES}},
    }
    begun = time.monotonic()
    sandbox = cri.call("RunPodSandbox", config=pod).pod_sandbox_id
    try:
        container = _container(cri, sandbox, pod, image, arguments, order.root)
        cri.call("StartContainer", container_id=container)
        status = _wait(cri, container, order.run_s)
        seconds = time.monotonic() - begun
        user = _user(cri, container)
    finally:
        for method in ("StopPodSandbox", "RemovePodSandbox"):  # ends and removes its container too
            with suppress(BuilderError):
                cri.call(method, pod_sandbox_id=sandbox)
    argv = (*image["entrypoint"], *arguments)
    return status.exit_code, ContainerRun(by_digest(image), argv, user, seconds, said(order.logs / LOG)[-TAIL:])


def _container(cri: Cri, sandbox: str, pod: dict[str, Any], image: dict[str, Any], arguments: tuple[str, ...],
               root: Path) -> str:  # fmt: skip
    models = {"container_path": f"/{MODELS}", "host_path": str(root / MODELS), "readonly": True}
    config = {
        "metadata": {"name": "proof"},
        "image": {"image": by_digest(image)},
        "args": list(arguments),  # `command` is left out: the image's own entry point runs
        "mounts": [models],
        "log_path": LOG,
        "linux": {"security_context": {"namespace_options": _NAMESPACES}},
    }
    answer = cri.call("CreateContainer", pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
    return str(answer.container_id)


def _wait(cri: Cri, container: str, run_s: float) -> Any:
    """The status of the container once it has ended. Raises BuilderError, and ends it, when `run_s` have passed."""
    deadline = time.monotonic() + run_s
    while True:
        status = cri.call("ContainerStatus", container_id=container).status
        if status.state == api.EXITED:
            return status
        if time.monotonic() > deadline:
            with suppress(BuilderError):
                cri.call("StopContainer", container_id=container, timeout=0)
            raise BuilderError(f"did not end within {run_s:.0f} s")
        time.sleep(POLL_S)


def _user(cri: Cri, container: str) -> str:
    """`uid:gid` of the container's first process, out of the specification that runc was given."""
    info = cri.call("ContainerStatus", container_id=container, verbose=True).info
    user = json.loads(info["info"])["runtimeSpec"]["process"]["user"]
    return f"{user.get('uid', 0)}:{user.get('gid', 0)}"


def said(log: Path) -> str:
    """What the container wrote, both streams as containerd logged them. Each line begins with time, stream and a mark."""
    if not log.is_file():
        return ""
    out = bytearray()
    for line in log.read_bytes().splitlines(keepends=True):
        match = _LINE.match(line)
        body = line[match.end() :] if match else line
        out += body.removesuffix(b"\n") if match and match[1] == b"P" else body
    return out.decode(errors="replace")


def _indented(output: str) -> str:
    return "".join(f"\n    {line}" for line in output.strip().splitlines()[-10:])


def _ours(image: dict[str, Any]) -> bool:
    return "builder.runtime" in image["entrypoint"]
