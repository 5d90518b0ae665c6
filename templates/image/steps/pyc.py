"""pyc.py EPOCH MODULE...: bytecode of exactly what importing the MODULEs reads, into /out, tied to no file time.

Compiling everything would be 119 MB for torch and sympy alone. Ordinary bytecode names the time of its source, and a
reproducible layer sets that time, so Python would compile everything again at each start; unchecked-hash bytecode has
no such tie (PEP 552). The import runs in a child that writes its bytecode elsewhere, so the layers below stay as they are.

Where the standard library is there without its bytecode, as in a distroless image, that of what is imported is written too. For
that the template mounts builder's runtime, whose imports are then read as well; its own bytecode is another layer's.
"""

import os
import py_compile
import subprocess
import sys
import tempfile
from importlib.util import cache_from_source
from pathlib import Path

OUT = Path("/out")
SHIPPED = Path("/opt/builder")
MODE = py_compile.PycInvalidationMode.UNCHECKED_HASH


def main(epoch: int, modules: list[str]) -> None:
    for source in sorted(traced([*modules, *shipped()])):
        target = OUT / cache_from_source(str(source)).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        py_compile.compile(str(source), cfile=str(target), dfile=str(source), doraise=True, invalidation_mode=MODE)
    OUT.mkdir(exist_ok=True)
    for path in [OUT, *OUT.rglob("*")]:
        os.utime(path, (epoch, epoch))


def traced(modules: list[str]) -> set[Path]:
    """Sources without bytecode that importing `modules` reads. What imports only with a GPU is the smoke stage's to say."""
    with tempfile.TemporaryDirectory() as prefix:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": prefix, "PYTHONPATH": str(SHIPPED)}
        code = "".join(f"import {name}\n" for name in modules)
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        root = Path(prefix)
        found = {Path("/") / pyc.relative_to(root).parent / (pyc.name.split(".")[0] + ".py") for pyc in root.rglob("*.pyc")}
        return {path for path in found if path.is_file() and not has_bytecode(path) and not path.is_relative_to(SHIPPED)}


def has_bytecode(source: Path) -> bool:
    return Path(cache_from_source(str(source))).exists()


def shipped() -> list[str]:
    """Every module of builder's runtime that is mounted: the program imports most of them only when needed."""
    files = sorted((SHIPPED / "builder").rglob("*.py"))
    return [".".join(path.relative_to(SHIPPED).with_suffix("").parts) for path in files if not path.stem.startswith("__")]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
