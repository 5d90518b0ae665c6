"""Running a build: its log as steps of a progress, and as one error where it fails."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from builder.errors import BuilderError, CapabilityError
from builder.image.backends.faults import fault
from builder.progress import Progress

TAIL = 25
STOP_S = 20.0  # BuildKit and buildah take back what they began; then the child is killed
FULL_BYTES = 32 << 20
DIED = "check the engine's own log (dockerd, journalctl), and whether the machine ran out of memory"


class Log(Protocol):
    """Reads the output of a build line by line. failed: the failing step as people know it, "" while there is none."""

    @property
    def failed(self) -> str: ...

    def feed(self, line: str) -> None: ...

    def close(self) -> None:
        """The output has ended: so has every step."""

    def tail(self) -> Sequence[str]:
        """The last lines of the failing step; without one, the last of all."""


def run(command: Sequence[str], log: Log, *, env: Mapping[str, str] | None = None, places: Sequence[str | Path] = ()) -> None:
    """Run a build to its end.

    env: of the child, instead of this process's own. places: where the build writes, to be named if one is full.
    Raises CapabilityError if the program is missing or a place is full, else what `fault` makes of the failing step.
    """
    try:
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # docker starts the plugin as a child of its own: both are stopped, as one group
        )
    except FileNotFoundError as exc:
        raise CapabilityError(f"{command[0]}: program not found") from exc
    assert child.stdout is not None
    try:
        for line in child.stdout:
            log.feed(line.decode(errors="replace").rstrip())
        child.wait()
    except BaseException:
        _stop(child)
        raise
    finally:
        child.stdout.close()
        log.close()
    if child.returncode:
        raise failure(child.returncode, command, log, places)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask, then insist, the whole group. A second Ctrl-C must not leave it running."""
    with contextlib.suppress(KeyboardInterrupt):
        _signal(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)
    _signal(child, signal.SIGKILL)
    child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def failure(status: int, command: Sequence[str], log: Log, places: Sequence[str | Path] = ()) -> BuilderError:
    """The failing step and its last lines; without one, the last lines of all."""
    said = "".join(f"\n  {line}" for line in log.tail() if line.strip())
    if status < 0:
        name = signal.Signals(-status).name
        program = next(word for word in command if word != "env" and "=" not in word)
        return BuilderError(f"the build ended early: {program} was killed by {name}{said}", hint=DIED)
    what = f"image build failed in step {log.failed}" if log.failed else f"exit status {status} from: {shlex.join(command)}"
    return fault(what, said, step=log.failed, full=full(places))


def full(places: Sequence[str | Path]) -> str:
    """Those of the places that have next to no room left."""
    found = []
    for place in map(Path, places):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < FULL_BYTES:
                found.append(str(place))
    return ", ".join(found)


class BuildKitLog:
    """BuildKit's plain progress: `#7 [stage 1/2] RUN ...`, then `#7 0.53 output`, then `#7 DONE 1.2s`, CACHED or ERROR."""

    LINE: ClassVar[re.Pattern[str]] = re.compile(r"#(\d+) (.*)")
    # On several platforms their names stand before the stage's: [linux/arm64 base 1/3].
    STEP: ClassVar[re.Pattern[str]] = re.compile(r"\[(?:(linux/\S+) )?([a-z][a-z0-9_.-]*) +(\d+/\d+)\] (.*)")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.names: dict[str, str] = {}
        self.tasks: dict[str, int] = {}
        self.output: dict[str, collections.deque[str]] = {}
        self.last: collections.deque[str] = collections.deque(maxlen=TAIL)
        self.error = ""  # number of the first step that failed

    @property
    def failed(self) -> str:
        return self.names.get(self.error, "")

    def feed(self, line: str) -> None:
        match = self.LINE.fullmatch(line)
        if not match:
            if line.strip():
                self.last.append(line)
            return
        number, text = match[1], match[2]
        step = self.STEP.fullmatch(text)
        if step and number not in self.names:
            stage = f"{step[2]} {step[3]}" + (f" ({step[1]})" if step[1] else "")
            self.names[number] = f"{stage}: {step[4]}"
            self.tasks[number] = self.progress.add(f"image: {stage}")
        elif text.startswith(("DONE", "CACHED")):
            self._end(number, "cached" if text.startswith("CACHED") else "")
        elif text.startswith(("ERROR", "CANCELED")):
            self._broke(number, text)
        else:
            self._said(number, re.sub(r"^\d+\.\d+ ", "", text))

    def close(self) -> None:
        for number in list(self.tasks):
            self._end(number, "")

    def tail(self) -> Sequence[str]:
        return tuple(self.output.get(self.error, self.last)) if self.failed else tuple(self.last)

    def _broke(self, number: str, text: str) -> None:
        if text.startswith("ERROR"):
            self.error = self.error or number
            self.output.setdefault(number, collections.deque(maxlen=TAIL)).append(text)
        self._end(number, "failed" if text.startswith("ERROR") else "cancelled")

    def _said(self, number: str, text: str) -> None:
        self.output.setdefault(number, collections.deque(maxlen=TAIL)).append(text)
        if number in self.tasks:
            self.progress.note(self.tasks[number], text[:80])

    def _end(self, number: str, text: str) -> None:
        task = self.tasks.pop(number, None)
        if task is not None:
            self.progress.done(task, text)


class BuildahLog:
    """buildah's log: `[2/7] STEP 1/4: FROM base AS wheels`, output, then `--> Using cache 1f2e` or `--> 1f2e`.

    A stage's name stands in its FROM line only. One stage after another, so the last step that began is the one that failed.
    """

    STEP: ClassVar[re.Pattern[str]] = re.compile(r"(?:\[(\d+)/\d+\] )?STEP (\d+/\d+): (.*)")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stages: dict[str, str] = {}
        self.step = ""
        self.task: int | None = None
        self.lines: collections.deque[str] = collections.deque(maxlen=TAIL)
        self.error = False

    @property
    def failed(self) -> str:
        return self.step if self.error else ""

    def feed(self, line: str) -> None:
        step = self.STEP.fullmatch(line)
        if step:
            self._end("")
            self._begin(step[1] or "1", step[2], step[3])
        elif line.startswith("-->"):
            self._end("cached" if "Using cache" in line else "")
        elif not line.startswith("time=") and line.strip():  # time=: the program's own warnings
            self.lines.append(line)
            if line.startswith("Error: building at STEP"):
                self.error = True
                self._end("failed")
            elif self.task is not None:
                self.progress.note(self.task, line[:80])

    def close(self) -> None:
        self._end("")

    def tail(self) -> Sequence[str]:
        return tuple(self.lines)

    def _begin(self, stage: str, count: str, text: str) -> None:
        named = re.search(r"^FROM .* AS (\S+)$", text, re.IGNORECASE)
        name = self.stages.setdefault(stage, named[1] if named else f"stage-{stage}")
        self.step = f"{name} {count}: {text}"
        self.task = self.progress.add(f"image: {name} {count}")
        self.lines.clear()

    def _end(self, text: str) -> None:
        if self.task is not None:
            self.progress.done(self.task, text)
            self.task = None
