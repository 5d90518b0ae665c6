"""`python -m benchmarks weights`, small: every part runs, no tool fails, the page gets its section."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bounds import BOUND_S
from tests.conftest import S3

ROOT = Path(__file__).parents[3]


@pytest.mark.s3
def test_every_part_of_the_weights_topic_runs(s3: S3, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\n## weights\n\nold\n")
    argv = [sys.executable, "-m", "benchmarks", "weights", "--size", "8MB", "--sizes", "8MB", "--rounds", "1"]
    argv += ["--only", "builder,s5cmd", "--parts", "memory,folder,marks,scale", "--write", str(page)]
    argv += ["--dir", str(tmp_path), "--memory-dir", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == "# Benchmarks\n\n## weights\n\n" + done.stdout.strip() + "\n"
    assert re.findall(r"^### (.*?)(?: \(.*)?$", done.stdout, re.MULTILINE) == [
        "push to S3, tmpfs",
        "pull from S3, tmpfs",
        "push again, unchanged",
        "push after a change",
        "parse a manifest",
        "push to a folder, warm",
        "pull from a folder, warm",
        "cost by size, S3, disk, warm",
        "memory",
    ]
    assert "exit " not in done.stdout, "a tool failed"
    again = next(line for line in done.stdout.splitlines() if "%" in line)
    assert [c.strip() for c in again.split("|")[5:7]] == ["0", "0"], "an unchanged push wrote to the store"
    assert not list(tmp_path.glob("builder-bench-*"))
