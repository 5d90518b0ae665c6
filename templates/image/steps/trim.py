"""trim.py RUNTIME_LIST EPOCH MODULE,... [PATTERN...]: make /opt/venv small, then split it into /out/runtime and /out/engine.

RUNTIME_LIST names the files that were there before the engine. MODULEs are imported once in a child, and exactly what
that import reads is compiled (all of torch and sympy would be 119 MB of bytecode). PATTERNs, below site-packages, are
dropped. Every file gets the time EPOCH, so that the same files make the same layer. Runs inside the build, with the
virtual environment's own Python.
"""

import os
import py_compile
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

VENV = Path("/opt/venv")
OUT = Path("/out")
PAGE = 4096
UNREAD = (".a", ".pyi", ".pyx", ".pxd")  # nothing reads them without a compiler
PT_LOAD = 1


def main(runtime_list: Path, epoch: int, modules: list[str], patterns: list[str]) -> None:
    runtime = set(runtime_list.read_text().splitlines())
    site = Path(sysconfig.get_path("purelib"))
    drop(site, patterns)
    strip(site)
    trace(modules)
    compile_all(site, runtime)
    split(runtime, epoch)


def drop(site: Path, patterns: list[str]) -> None:
    """Tests, static archives, stubs, old bytecode, and what the engine's recipe names."""
    doomed = [path for pattern in patterns for path in site.glob(pattern)]
    doomed += [path for name in ("tests", "__pycache__") for path in site.rglob(name) if path.is_dir()]
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for path in site.rglob("*"):
        if path.suffix in UNREAD and path.is_file():
            path.unlink()


def strip(site: Path) -> None:
    """Drop symbols, but keep the original wherever the result is not a loadable file.

    patchelf moves segments in a way that strip undoes: then a LOAD segment's offset and address no longer agree modulo
    a page, and the loader refuses the file (seen on numpy's OpenBLAS and torchvision's image.so). Files under nvidia/
    are left alone: their licence forbids changing them.
    """
    for path in site.rglob("*.so*"):
        if not path.is_file() or path.is_symlink() or path.relative_to(site).parts[0] == "nvidia":
            continue
        slim = Path("/tmp/stripped")
        done = subprocess.run(["strip", "--strip-unneeded", "-o", slim, path], capture_output=True, check=False)
        if done.returncode == 0 and loadable(slim) and slim.stat().st_size < path.stat().st_size:
            shutil.copyfile(slim, path)


def loadable(path: Path) -> bool:
    """Whether every LOAD segment of a 64-bit little-endian ELF file has its offset and address agree modulo a page."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        table, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(table)
        entries = file.read(size * count)
    for at in range(0, len(entries), size):
        kind, _, offset, address = struct.unpack_from("<IIQQ", entries, at)
        if kind == PT_LOAD and offset % PAGE != address % PAGE:
            return False
    return True


def trace(modules: list[str]) -> None:
    """Import in one child, which leaves a __pycache__ beside every module it read."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([VENV / "bin/python", "-c", "".join(f"import {name}\n" for name in modules)], env=env, check=True)


def compile_all(site: Path, runtime: set[str]) -> None:
    """unchecked-hash bytecode: the layer's file times would make every ordinary .pyc stale, at each start."""
    traced = [Path(f"{pyc.parent.parent}/{pyc.name.split('.')[0]}.py") for pyc in site.rglob("__pycache__/*.pyc")]
    ours = [Path(name) for name in runtime if name.endswith(".py") and Path(name).is_file()]
    for source in sorted({*traced, *ours}):
        py_compile.compile(str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def split(runtime: set[str], epoch: int) -> None:
    """/out/runtime holds RUNTIME_LIST and its bytecode, the same for every engine; /out/engine the rest."""
    for path in sorted(VENV.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        source = f"{path.parent.parent}/{path.name.split('.')[0]}.py" if path.suffix == ".pyc" else str(path)
        part = "runtime" if str(path) in runtime or source in runtime else "engine"
        target = OUT / part / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for path in [OUT, *OUT.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:])
