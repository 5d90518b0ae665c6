"""The server without an image: this Python runs the same runtime as a child, on this machine, in a process group of its own.

What it cannot show is said by the caller: no image, no container start, no user of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError
from builder.verify import inside
from builder.verify.launch import Launch, redact, whole_environment
from builder.verify.server import LOG_LINES

STOP_S = 10.0  # the runtime passes SIGTERM on and waits for its engine; after this it is killed
LOOK_S = 30.0
MODULES = {
    "llama.cpp": ("xllamacpp",),
    "transformers": ("torch", "transformers"),
    "onnxruntime": ("onnxruntime",),
    "triton": ("pytriton",),
}
# Kept from the caller's environment: what finds libraries, GPUs, certificates and temporary space. The rest is ours.
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_CA_BUNDLE",
)


class InPlace:
    """A running server. Satisfies `Server`."""

    def __init__(self, launch: Launch, child: subprocess.Popen[bytes], log: Path, ports: tuple[int, int], root: Path) -> None:
        self.launch, self.child, self.log, self.root = launch, child, log, root
        self.host = "127.0.0.1"
        self.port, self.control_port = ports
        self.asked = 0.0
        self.notes: list[str] = []
        self.gpu = False  # the child may use one that is there, but nothing was given to it, so nothing is claimed

    def started(self) -> float:
        """When the process existed, from the kernel's own record (proc(5): starttime, in clock ticks since boot)."""
        try:
            fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self.asked
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(self.asked, boot + since_boot)

    def ended(self) -> str | None:
        code = self.child.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def logs(self, lines: int = LOG_LINES) -> str:
        text = self.log.read_bytes()[-64_000:].decode(errors="replace")
        return redact("\n".join(text.splitlines()[-lines:]), self.launch)

    def look(self) -> dict[str, Any]:
        command = [sys.executable, "-c", inside.SCRIPT, str(self.root), str(self.child.pid)]
        done = subprocess.run(command, capture_output=True, timeout=LOOK_S, check=False)
        return inside.parse(done.stdout or done.stderr)


@contextlib.contextmanager
def start(launch: Launch, *, environ: Mapping[str, str]) -> Iterator[InPlace]:
    """The server, running; its process group is ended and its folder removed on the way out, also after Ctrl-C.

    environ: the caller's environment, of which only KEPT goes on. Each start restores the weights into an empty folder,
    unless launch.models names one. Raises CapabilityError if the engine's Python packages are not importable here.
    """
    need_engine(launch.engine)
    with tempfile.TemporaryDirectory(prefix="builder-verify-") as folder, contextlib.ExitStack() as stack:
        root = Path(launch.models or Path(folder, "models"))
        root.mkdir(exist_ok=True)
        ports = free_ports()
        env = {k: environ[k] for k in KEPT if k in environ}
        env |= whole_environment(launch, port=ports[0], control_port=ports[1], models_root=str(root))
        env |= {"PYTHONPATH": str(package_root()), "PYTHONUNBUFFERED": "1", "BUILDER_PHASES": str(Path(folder, "phases"))}
        command = [sys.executable, "-m", "builder.runtime", "serve"]
        asked = time.time()
        with Path(folder, "log").open("wb") as out:
            child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        stack.callback(_stop, child)
        server = InPlace(launch, child, Path(folder, "log"), ports, root)
        server.asked = asked
        yield server


def need_engine(engine: str) -> None:
    """Nothing if the engine's packages are here. Raises CapabilityError."""
    names = MODULES.get(engine)
    if names is None:
        raise CapabilityError(
            f"{engine} does not run in place; expected one of {', '.join(MODULES)}",
            hint="builder verify without --in-place runs it in its image",
        )
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = "pip install 'coldstart-builder[demo]'" if name == "xllamacpp" else f"pip install {name}"
            raise CapabilityError(f"{engine} in place needs the Python package {name}, which is not installed", hint=extra)


def package_root() -> Path:
    """The folder that holds the package `builder`."""
    return Path(__file__).resolve().parents[2]


def free_ports() -> tuple[int, int]:
    """Two free ports of the loopback address. Another program may take one before the server does; it then says so."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the whole process group: the engine too, should the runtime have died before it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
