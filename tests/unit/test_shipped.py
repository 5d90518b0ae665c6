"""The part that travels inside images: standard library, plus the two wheels the image installs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder.image import context
from tests.unit.test_layers import ROOT, SHIPPED, imports

NEWER = {"tomllib", "_colorize", "annotationlib", "compression"}
WHEELS = {"obstore", "awscrt"}
# Imported by one child program each, inside an image that carries that engine.
ENGINES = {
    "runtime/llamacpp.py": {"xllamacpp"},
    "runtime/onnxruntime.py": {"onnxruntime"},
    "runtime/v2_tensors.py": {"numpy"},
}


def files_of(names: tuple[str, ...]) -> list[Path]:
    found = [ROOT / name for name in names if name.endswith(".py")]
    for name in names:
        found += sorted((ROOT / name).rglob("*.py"))
    return found


def copied(names: tuple[str, ...], target: Path) -> Path:
    for path in files_of(names):
        copy = target / "builder" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target


@pytest.mark.parametrize("path", files_of(SHIPPED), ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_files_import_the_standard_library_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | WHEELS | {"builder"} | ENGINES.get(str(path.relative_to(ROOT)), set())
    foreign = sorted({m.split(".")[0] for m in imports(path)} - allowed)
    assert not foreign


def test_the_shipped_set_runs_alone(tmp_path: Path) -> None:
    """Copied out, without site-packages, the program still starts: nothing is imported that the copy lacks."""
    copied(SHIPPED, tmp_path)
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.defpath}
    command = [sys.executable, "-S", "-m", "builder.runtime", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "prefetch" in done.stdout


@pytest.mark.parametrize("path", files_of(context.SLIM), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_build_step_imports_is_the_standard_library_of_python_3_10(path: Path) -> None:
    foreign = sorted({m.split(".")[0] for m in imports(path)} - set(sys.stdlib_module_names) - {"builder"})
    assert not foreign
    ast.parse(path.read_text(), feature_version=(3, 10))
    assert not {m for m in imports(path) if m.split(".")[0] in NEWER}, "not in Python 3.10"


def test_the_pruner_runs_alone(tmp_path: Path) -> None:
    code = "import builder.slim.tree, builder.slim.chips; print(builder.slim.tree.__file__)"
    env = {"PYTHONPATH": str(copied(context.SLIM, tmp_path)), "PATH": os.defpath}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
