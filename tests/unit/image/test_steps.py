"""The scripts that run inside a build, as far as they run outside one."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from builder import resources

STEPS = resources.folder("templates") / "image" / "steps"


@pytest.fixture(scope="module")
def trim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trim", STEPS / "trim.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def elf(path: Path, *segments: tuple[int, int, int]) -> Path:
    """A 64-bit ELF file with program headers (type, offset, address) and nothing else."""
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, len(segments)) + bytes(6)
    path.write_bytes(head + b"".join(struct.pack("<IIQQ", *s[:1], 5, *s[1:]) + bytes(32) for s in segments))
    return path


@pytest.mark.parametrize(
    ("segments", "good"),
    [
        ([(1, 0, 0), (1, 0x2000, 0x5000)], True),
        ([(1, 0x2010, 0x5010)], True),
        ([(1, 0, 0), (1, 0x2010, 0x5000)], False),  # what strip leaves of a patched library
        ([(2, 0x2010, 0x5000)], True),  # not a LOAD segment
    ],
)
def test_a_stripped_library_must_stay_loadable(
    trim: ModuleType, segments: list[tuple[int, int, int]], good: bool, tmp_path: Path
) -> None:
    assert trim.loadable(elf(tmp_path / "x.so", *segments)) is good


def test_what_is_not_an_elf_file_is_not_loadable(trim: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"!<arch>\n" * 20)
    assert not trim.loadable(tmp_path / "x")
    assert trim.loadable(Path(sys.executable).resolve())


def test_drop_takes_tests_and_archives_and_the_recipes_patterns(trim: ModuleType, tmp_path: Path) -> None:
    doomed = ("a/tests/t.py", "a/__pycache__/m.pyc", "a/lib.a", "torch/include/x.h", "torch/bin/p-1")
    for name in (*doomed, "a/m.py", "a/testing/keep.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    trim.drop(tmp_path, ["torch/include", "torch/bin/p*", "absent/*"])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a/m.py", "a/testing/keep.py"]


@pytest.mark.parametrize("name", ["apt", "python", "user", "wheels"])
def test_shell_steps_parse(name: str) -> None:
    subprocess.run(["sh", "-n", STEPS / name], check=True)
