"""The parts of the benchmarks that compute; the whole of it runs in tests/integration/s3/test_benchmarks.py."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from benchmarks import limits, marks, measure, tables
from benchmarks.measure import Command, Failed, Run
from builder.format import manifest as manifests


def of(wall: float, cpu: float = 1.0) -> Run:
    return Run(wall, cpu, 0.5, 10 << 20)


def python(code: str) -> Command:
    return Command([sys.executable, "-c", code], os.environ)


def test_a_row_compares_medians_with_the_fastest_peer_and_the_limit() -> None:
    found = {"builder": [of(1), of(9), of(2)], "slow": [of(8)], "fast": [of(4)], "*wire*": [of(1)]}
    text = tables.compared("t", found, 10**9, peers={"slow", "fast"}, limit="*wire*", absent={"gone": "not installed: x"})
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines() if "|" in line}
    assert rows["builder"] == ["0.50 (0.11 to 1.00)", "1.00", "0.50", "10", "2.00", "0.50"]
    assert rows["slow"][-2:] == ["0.50", "0.12"]
    assert rows["gone"][0] == "not installed: x"


def test_a_section_is_replaced_and_its_neighbours_stay(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nWords.\n\n## weights\n\nold\n\n### push\n\nold\n\n## node\n\nkept\n")
    tables.replace_section(page, "weights", "new \\1\n")
    assert page.read_text() == "# Benchmarks\n\nWords.\n\n## weights\n\nnew \\1\n\n## node\n\nkept\n"
    tables.replace_section(page, "image", "more")
    assert page.read_text().endswith("## node\n\nkept\n\n## image\n\nmore\n")


def test_a_tool_that_fails_is_reported_and_the_others_go_on() -> None:
    found, failed = measure.rounds(
        {"good": lambda: measure.run(python("pass")), "bad": lambda: measure.run(python("raise SystemExit('no bucket')"))}, 2
    )
    assert len(found["good"]) == 2
    assert "bad" not in found
    assert "exit 1: no bucket" in failed["bad"]


def test_a_run_counts_the_memory_and_cpu_of_its_children_too() -> None:
    burn = "import time; held = bytearray(b'x') * (40 << 20)\nwhile time.process_time() < 0.3: pass"
    run = measure.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"))
    assert 0.3 <= run.cpu < 3
    assert 40 << 20 < run.rss < 120 << 20


def test_the_memory_of_a_small_program_is_not_this_ones() -> None:
    held = bytearray(b"x") * (64 << 20)
    assert 0 < measure.run(Command(["sleep", "0.2"], os.environ)).rss < 16 << 20
    assert held


def test_cold_files_are_not_in_the_page_cache(tmp_path: Path) -> None:
    if math.isnan(measure.resident([Path(__file__)])):
        pytest.skip("no fincore")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(4 << 20))
    measure.make_warm([tmp_path])
    if measure.resident([file]) < 0.99:
        pytest.skip("this file system keeps no page cache")
    assert measure.make_cold([tmp_path]) < 0.01


def test_the_limits_read_and_copy_every_byte(tmp_path: Path) -> None:
    source, target = tmp_path / "a b", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for number in range(3):
        (source / f"f{number}").write_bytes(os.urandom((3 << 20) + number))
    measure.run(limits.read(source))
    measure.run(limits.copy(source, target))
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}
    with pytest.raises(Failed):
        measure.run(limits.copy(source, tmp_path / "absent"))


def test_nginx_gives_every_byte(tmp_path: Path) -> None:
    if not limits.nginx_program():
        pytest.skip("no nginx")
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for number in range(3):
        (source / f"f{number}").write_bytes(os.urandom((3 << 20) + number))
    with limits.serve(source, tmp_path / "nginx") as nginx:
        measure.run(limits.receive(nginx, source, target), [nginx.pid])
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}


def test_the_large_manifest_is_one_that_is_read() -> None:
    made = marks.big_manifest()
    found = manifests.parse(made.to_bytes(), at="test", digest=made.digest)
    assert len(found.order) == marks.CHUNKS
    assert sum(len(f.tensors) for f in found.files) == marks.TENSORS
