"""Start a program that cannot outlive the runtime: `python child.py PARENT_PID PROGRAM ARGS...`

The kernel kills it when its parent dies, however that dies. Done in a process of its own, since code between fork and
exec of a program with threads (subprocess's preexec_fn) may deadlock. Runs with -I -S; costs about 20 ms.
Source: PR_SET_PDEATHSIG(2const): kept across execve of a program without set-user-ID; cleared in children of the child.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells exit


def main(argv: list[str]) -> int:
    parent, program = int(argv[0]), argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        sys.stderr.write(f"builder: engine: prctl: {os.strerror(ctypes.get_errno())}; it may outlive the runtime\n")
    if os.getppid() != parent:  # it died before the call above
        return 1
    try:
        os.execvp(program[0], program)
    except FileNotFoundError:
        sys.stderr.write(f"error: {program[0]}: program not found\n")
        return NOT_FOUND
    except OSError as exc:
        sys.stderr.write(f"error: {program[0]}: {exc.strerror}\n")
        return NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
