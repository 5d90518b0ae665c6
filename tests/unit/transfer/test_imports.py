"""What importing the read path costs inside a minimal image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import builder.transfer

FOLDER = Path(builder.transfer.__file__).parent
MODULES = sorted(f"builder.transfer.{p.stem}" for p in FOLDER.glob("*.py") if p.stem != "__init__")
PROGRAM = "import json, sys, {}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"


def test_without_site_packages_every_module_imports() -> None:
    """obstore and awscrt are loaded with the first byte, not with the module."""
    command = [sys.executable, "-S", "-c", PROGRAM.format(", ".join(MODULES))]
    done = subprocess.run(command, env={"PYTHONPATH": str(FOLDER.parents[1])}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    foreign = set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - {"builder"}
    assert foreign <= {"__main__"}
