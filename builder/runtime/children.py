"""Child processes: start, signal, reap. Also the duties of PID 1: every orphan that lands here is reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHER = Path(__file__).with_name("child.py")


def exit_code(status: int) -> int:
    """What a shell would report for a wait status: the exit code, or 128 + the signal.

    >>> exit_code(3 << 8), exit_code(9)
    (3, 137)
    """
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Child:
    """One program in a process group of its own. ended: resolves to its exit code, 128 + n for signal n."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, number: int) -> None:
        """A signal to the program itself; it knows best what to tell its own workers."""
        if not self.ended.done():
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL to the program and to all it started. A group without members is fine."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Children:
    """Start and reap on the event loop's thread: SIGCHLD is handled there, so no child ends before it is known."""

    def __init__(self) -> None:
        self._known: dict[int, Child] = {}
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        stdout: int | None = None,
        keep: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """stdout and stderr are inherited; stdin is empty. The kernel kills it when this process dies.

        keep: further open files that the child gets too, under the same numbers.  env: its environment; None: inherited.
        """
        command = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *argv]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, cwd=cwd, start_new_session=True, pass_fds=keep, env=env
        )
        process.returncode = 0  # reaped below, not by subprocess; this keeps its destructor from waiting too
        child = self._known[process.pid] = Child(process.pid)
        return child

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._known.pop(pid, None)
            if child and not child.ended.done():
                child.ended.set_result(exit_code(status))
