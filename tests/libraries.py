"""Small shared objects of gcc, and a child process that loads one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import missing


def build(
    folder: Path, name: str, source: str, *flags: str, versions: str = "", soname: str = "", needs: tuple[Path, ...] = ()
) -> Path:
    """folder/name made of C or, with -xc++ among the flags, C++ source. versions: the text of a version script."""
    if not shutil.which("gcc"):
        missing("gcc", "there is no gcc to make small libraries with")
    folder.mkdir(parents=True, exist_ok=True)
    code, path = folder / f"{name}.c", folder / name
    code.write_text(source)
    command: list[str | Path] = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-fno-builtin",
        f"-Wl,-soname,{soname or name}",
        "-o",
        path,
        *flags,
        code,
    ]
    command += ["-xnone", *needs]
    if "-xc++" in flags:
        command.append("-lstdc++")
    if versions:
        (folder / f"{name}.map").write_text(versions)
        command.append(f"-Wl,--version-script={folder / f'{name}.map'}")
    subprocess.run(command, check=True)
    return path


def call(path: Path, function: str, *, before: str = "", library_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a child says and how it ends that loads `path` with every symbol bound, and calls `function`. before: code."""
    program = (
        f"import ctypes, os, sys\n{before}\nl = ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW)\nprint(getattr(l, sys.argv[2])())"
    )
    env = {"LD_LIBRARY_PATH": str(library_path)} if library_path else {}
    command = [sys.executable, "-S", "-c", program, str(path), function]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)
