"""Run a program. On failure: the command ready to paste, its exit status, and the tail of what it said."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.errors import BuilderError, CapabilityError

TAIL_LINES = 15
ANSWER_S = 120.0
"""Seconds for a program that only tells what it knows. It bounds a hang: on a slow disk a first answer takes half a minute."""
CHANGE_S = 900.0
"""Seconds for a program that also changes a little on the disk: a name, or a container or image removed."""


def run(
    command: Sequence[str | Path],
    *,
    hint: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_bytes: bytes | None = None,
    timeout_s: float | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """The finished process, its stdout and stderr captured as bytes.

    env replaces the whole environment when given. Secrets go into env or input_bytes, never into command.
    Raises CapabilityError if the program is missing, BuilderError if it fails (unless check is False) or times out.
    """
    argv = [str(part) for part in command]
    try:
        done = subprocess.run(argv, env=env, cwd=cwd, input=input_bytes, stdin=None if input_bytes else subprocess.DEVNULL,
                              capture_output=True, timeout=timeout_s, check=False)  # fmt: skip
    except FileNotFoundError as exc:
        raise CapabilityError(f"{argv[0]}: program not found", hint=hint or f"install {argv[0]}") from exc
    except PermissionError as exc:
        raise CapabilityError(f"{argv[0]}: may not be run by this user", hint=hint) from exc
    except subprocess.TimeoutExpired as exc:
        raise BuilderError(f"no answer within {timeout_s:.0f} s: {shlex.join(argv)}", hint=hint) from exc
    if check and done.returncode:
        tail = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
        said = "".join(f"\n  {line}" for line in tail)
        raise BuilderError(f"exit status {done.returncode} from: {shlex.join(argv)}{said}", hint=hint)
    return done


def which(program: str) -> Path | None:
    """The program's path; /sbin and /usr/sbin count even where PATH omits them (Debian users)."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    return Path(found) if found else None


def need(program: str, package: str = "") -> Path:
    """The program's path. Raises CapabilityError that names the Debian package to install."""
    found = which(program)
    if found is None:
        raise CapabilityError(f"{program}: program not found", hint=f"apt-get install {package or program}")
    return found
