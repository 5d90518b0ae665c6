"""Start a program that cannot outlive the runtime, and hears its signals: `python child.py PARENT_PID PROGRAM ARGS...`

The kernel kills it when its parent dies, however that dies. Done in a process of its own, since code between fork and
exec of a program with threads (subprocess's preexec_fn) may deadlock. Runs with -I -S; costs about 20 ms.
Source: PR_SET_PDEATHSIG(2const): kept across execve of a program without set-user-ID; cleared in children of the child.

Ignored signals and the mask of blocked ones survive exec too (signal(7)): a shell without job control starts `program &`
with SIGINT and SIGQUIT ignored, nohup ignores SIGHUP. Both are reset, for the runtime passes these signals on.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells exit


def main(argv: list[str]) -> int:
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
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
