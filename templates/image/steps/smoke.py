"""smoke.py REPORT MODULE...: prove that this image can serve, as the user who will; write what was found to REPORT.

Imports the engine's MODULEs, every module of builder's runtime, the whole standard library that they need (a minimal
Python lacks parts of it), and starts the runtime far enough to print its help. Runs inside the build, and fails it.
"""

import importlib
import importlib.metadata
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

STANDARD = (
    *("asyncio", "contextvars", "ctypes", "hashlib", "http.server", "json", "logging", "mmap"),
    *("multiprocessing", "signal", "socket", "ssl", "urllib.request", "zlib"),
)
# Every module of the shipped set but the engines' own programs; the program imports most of them only when needed.
RUNTIME = sorted(
    ".".join(path.relative_to("/opt/builder").with_suffix("").parts)
    for path in Path("/opt/builder/builder").rglob("*.py")
    if path.stem not in ("__main__", "__init__", "llamacpp", "torch")
)
USER = 10001


def main(report: Path, modules: list[str]) -> None:
    if os.getuid() != USER:
        sys.exit(f"smoke: running as user {os.getuid()}, the image is for {USER}")
    for name in [*STANDARD, "obstore", "awscrt.checksums", *RUNTIME, *modules]:
        importlib.import_module(name)
    for folder in (Path.home(), Path("/var/lib/builder/models"), Path("/opt/cache")):
        probe = folder / ".smoke"
        probe.touch()
        probe.unlink()
    found = ssl.get_default_verify_paths()  # a file, or a folder with a link by each certificate's hash
    if not found.cafile and not (found.capath and any(Path(found.capath).glob("*.0"))):
        sys.exit("smoke: Python finds no certificate authorities; weights could not be fetched over TLS")
    help_text = subprocess.run([sys.executable, "-m", "builder.runtime", "--help"], capture_output=True, text=True, check=False)
    if help_text.returncode or "serve" not in help_text.stdout:
        sys.exit(f"smoke: python -m builder.runtime --help exited {help_text.returncode}\n{help_text.stdout}{help_text.stderr}")
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    text = json.dumps({"python": sys.version.split()[0], "imports": modules, "packages": dict(sorted(found.items()))}, indent=1)
    report.write_text(text + "\n")
    os.utime(report, (0, 0))  # the same bytes at the same time: the same layer


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
