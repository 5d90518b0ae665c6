"""A full disk and disks that cannot be written, on real file systems: nothing is half done, and the next run goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.slim import tree
from builder.slim.chips import Chip
from builder.slim.report import Report
from tests import fatbins

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
KIB = 1 << 10


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB with three libraries, of 2.0, 1.9 and 1.0 MiB. The second keeps nearly all it has."""
    at = tmp_path / "tiny"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", at], check=True)
    for name, other, mine in (("first.so", 1900, 100), ("second.so", 100, 1800), ("third.so", 900, 100)):
        code: fatbins.Container = [
            ("sm_80", fatbins.cubin("sm_80", other * KIB)),
            ("sm_90", fatbins.cubin("sm_90", mine * KIB)),
        ]
        made = fatbins.make(tmp_path / "made", name, [code])
        (at / name).write_bytes(made.read_bytes())
        (at / name).chmod(0o755)
    yield at
    subprocess.run(["umount", at], check=True)


def slim(folder: Path, **more: bool) -> Report:
    return tree.slim([folder], (Chip(9, 0),), "all", workers=1, **more)


def bodies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_that_fills_midway_keeps_what_is_done_and_leaves_the_rest(tiny: Path) -> None:
    before = bodies(tiny)
    with (tiny / "first.so").open("rb"):  # somebody has it open, so that its room is not free when it is replaced
        report = slim(tiny)
    failure = report.failure()
    assert isinstance(failure, CapabilityError)
    assert failure.message == f"{tiny}/second.so: no space beside it for the pruned copy: No space left on device"
    assert "run the same again" in failure.hint
    assert [one.status for one in report.files] == ["pruned", "failed", "left"]
    assert report.files[2].reason == "not reached: another file's fault ended the run"
    after = bodies(tiny)
    assert {name: after[name] == before[name] for name in before} == {
        "first.so": False, "second.so": True, "third.so": True
    }  # fmt: skip
    assert after.keys() == before.keys()
    assert fatbins.pointers(tiny / "first.so") == [fatbins.container([("sm_90", fatbins.cubin("sm_90", 100 * KIB))])]
    again = slim(tiny)
    assert again.failure() is None
    assert [one.status for one in again.files] == ["nothing-to-drop", "pruned", "pruned"]
    assert bodies(tiny).keys() == before.keys()


def test_a_read_only_file_system_is_named_and_a_dry_run_works_there(tiny: Path) -> None:
    before = bodies(tiny)
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    failure = slim(tiny).failure()
    assert isinstance(failure, CapabilityError)
    assert failure.message == f"{tiny}/first.so: cannot be read or replaced: Read-only file system"
    assert [one.status for one in slim(tiny, dry_run=True).files] == ["pruned"] * 3
    assert bodies(tiny) == before


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """Root may write everywhere, but not what is marked immutable."""
    site = tmp_path / "site"
    fatbins.make(site, "a.so", [[("sm_80", fatbins.cubin("sm_80")), ("sm_90", fatbins.cubin("sm_90"))]])
    before = bodies(site)
    if subprocess.run(["chattr", "+i", site], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        failure = slim(site).failure()
    finally:
        subprocess.run(["chattr", "-i", site], check=True)
    assert isinstance(failure, CapabilityError)
    assert failure.message == f"{site}/a.so: cannot be read or replaced: Operation not permitted"
    assert "write permission" in failure.hint
    assert bodies(site) == before
