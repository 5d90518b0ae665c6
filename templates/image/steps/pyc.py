"""pyc.py EPOCH MODULE...: bytecode of exactly what importing the MODULEs reads, into /out, tied to no file time.

Compiling everything would be 119 MB for torch and sympy alone. Ordinary bytecode names the time of its source, and a
reproducible layer sets that time, so Python would compile everything again at each start; unchecked-hash bytecode has
no such tie (PEP 552). The import runs in a child that writes its bytecode elsewhere, so the layers below stay as they are.
"""

import os
import py_compile
import subprocess
import sys
import tempfile
from importlib.util import cache_from_source
from pathlib import Path

OUT = Path("/out")
MODE = py_compile.PycInvalidationMode.UNCHECKED_HASH


def main(epoch: int, modules: list[str]) -> None:
    for source in sorted(traced(modules)):
        target = OUT / cache_from_source(str(source)).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        py_compile.compile(str(source), cfile=str(target), dfile=str(source), doraise=True, invalidation_mode=MODE)
    OUT.mkdir(exist_ok=True)
    for path in [OUT, *OUT.rglob("*")]:
        os.utime(path, (epoch, epoch))


def traced(modules: list[str]) -> set[Path]:
    """Sources under /opt/venv that importing `modules` compiled. What imports only with a GPU is the smoke stage's to say."""
    with tempfile.TemporaryDirectory() as prefix:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = prefix
        code = "".join(f"import {name}\n" for name in modules)
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        root = Path(prefix)
        found = {Path("/") / pyc.relative_to(root).parent / (pyc.name.split(".")[0] + ".py") for pyc in root.rglob("*.pyc")}
        return {path for path in found if path.is_relative_to("/opt/venv") and path.is_file()}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
