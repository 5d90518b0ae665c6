"""python -m builder.runtime serve | prefetch | probe | selftest. Settings come from BUILDER_* variables.

Data goes to stdout as JSON, everything else to stderr. Exit codes: `builder.errors`; `serve` passes the engine's on.
Each command imports what it needs when it is named: an exec probe runs every few seconds on a busy node.
"""

from __future__ import annotations

import sys


def main(argv: list[str]) -> int:
    from builder.errors import BuilderError

    if argv[:1] == ["probe"]:
        from builder.runtime import probe

        run = probe.main
    else:
        from builder.runtime import commands

        run = commands.main
    try:
        return run(argv)
    except BuilderError as exc:
        sys.stderr.write(f"error: {exc.message}\n" + (f"\nhint: {exc.hint}\n" if exc.hint else ""))
        return exc.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    import os

    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)  # a fetch that was told to stop may still have threads; what they leave is made to be resumed
