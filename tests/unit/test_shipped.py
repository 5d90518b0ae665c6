"""The part that travels inside images: standard library, plus the two wheels the image installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_layers import ROOT, SHIPPED, imports

WHEELS = {"obstore", "awscrt"}
# Imported by one child program each, inside an image that carries that engine.
ENGINES = {
    "runtime/llamacpp.py": {"xllamacpp"},
    "runtime/onnxruntime.py": {"onnxruntime"},
    "runtime/v2_tensors.py": {"numpy"},
}


def shipped_files() -> list[Path]:
    found = [ROOT / name for name in SHIPPED if name.endswith(".py")]
    for name in SHIPPED:
        found += sorted((ROOT / name).rglob("*.py"))
    return found


@pytest.mark.parametrize("path", shipped_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_files_import_the_standard_library_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | WHEELS | {"builder"} | ENGINES.get(str(path.relative_to(ROOT)), set())
    foreign = sorted({m.split(".")[0] for m in imports(path)} - allowed)
    assert not foreign


def test_the_shipped_set_runs_alone(tmp_path: Path) -> None:
    """Copied out, without site-packages, the program still starts: nothing is imported that the copy lacks."""
    for name in SHIPPED:
        source = ROOT / name
        target = tmp_path / "builder" / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.defpath}
    command = [sys.executable, "-S", "-m", "builder.runtime", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "prefetch" in done.stdout
