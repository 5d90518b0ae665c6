"""What a killed process leaves is removed by the next one, and nothing else is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ConfigError
from builder.node import disk, workplace
from builder.node.targets import WholeDisk

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]
ROOT = Path(__file__).parents[3]
WAIT_S = 120
WORK = """
import sys, time
from pathlib import Path
from builder.node import disk, workplace
from builder.node.targets import WholeDisk
folder = Path(sys.argv[1])
with workplace.workplace(folder / "kept.img", run=folder / "run"), \\
     workplace.workplace(folder / "made.img", tree=folder / "tree", files=(folder / "half",), temporary=True,
                         run=folder / "run"), \\
     workplace.scratch(folder / "inputs", run=folder / "run") as inputs:
    (folder / "tree").mkdir()
    for path in (folder / "tree/a", folder / "half", inputs / "blob", folder / "ready"):
        path.write_text("x")
    time.sleep(600)
"""


def until(path: Path, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Where a process worked that was killed. kept.img is its user's own."""
    for name in ("kept.img", "made.img"):
        (tmp_path / name).write_text("disk")
    child = subprocess.Popen([sys.executable, "-c", WORK, tmp_path], cwd=ROOT)
    until(tmp_path / "ready", child)
    assert workplace.sweep(tmp_path / "run") == []  # it lives
    with (
        pytest.raises(CapabilityError, match="another process works on it"),
        workplace.workplace(tmp_path / "made.img", run=tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "made.img").exists()
    child.kill()
    child.wait()
    (tmp_path / "ready").unlink()
    return tmp_path


def test_a_disk_that_was_only_opened_stays(killed: Path) -> None:
    removed = workplace.sweep(killed / "run")
    assert set(removed) == {f"folder {killed / 'tree'}", f"folder {killed / 'inputs'}", f"file {killed / 'half'}",
                            f"file {killed / 'made.img'}"}  # fmt: skip
    assert sorted(p.name for p in killed.iterdir()) == ["kept.img", "run"]
    assert (killed / "kept.img").read_text() == "disk"
    assert list((killed / "run").iterdir()) == []


def test_what_was_started_is_ended_and_a_pager_is_not(killed: Path) -> None:
    """A skopeo that goes on writing into the folder that is to be removed; and somebody who reads the log."""
    (work,) = [p.parent for p in (killed / "run").glob("*/record.json") if '/inputs"' in p.read_text()]
    wait = "import time; time.sleep(600)"
    copying = subprocess.Popen(["skopeo", "-c", wait, f"dir:{killed}/inputs/0"], executable=sys.executable)
    reading = subprocess.Popen(["less", "-c", wait, f"{work}/containerd.log"], executable=sys.executable)
    try:
        assert f"process {copying.pid}" in workplace.sweep(killed / "run")
        assert copying.wait(WAIT_S) < 0
        assert reading.poll() is None
    finally:
        for child in (copying, reading):
            child.kill()
            child.wait()


def test_the_device_of_a_disk_that_was_removed_by_hand_is_let_go(killed: Path) -> None:
    """Who finds OUT.img.partial after a crash deletes it; the device would hold its space till the machine starts anew."""
    made = killed / "made.img"
    made.write_bytes(bytes(1 << 20))
    attach = ["losetup", "--find", "--show", made]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    made.unlink()
    assert f"loop device {device}" in workplace.sweep(killed / "run")
    assert workplace.loops_of(made) == []


def test_a_record_that_was_cut_short_names_nothing(killed: Path) -> None:
    for path in (killed / "run").glob("*/record.json"):
        path.write_text(path.read_text()[:20])
    assert workplace.sweep(killed / "run") == []
    assert (killed / "kept.img").exists()


def test_a_folder_of_somebody_else_is_refused_and_kept(killed: Path) -> None:
    """What a killed process made is cleared away; what nobody's record names may be its user's."""
    with workplace.scratch(killed / "inputs", run=killed / "run") as inputs:
        assert list(inputs.iterdir()) == []
    (killed / "mine").mkdir()
    (killed / "mine/a").write_text("x")
    with (
        pytest.raises(ConfigError, match="mine: already there"),
        workplace.scratch(killed / "mine", run=killed / "run"),
    ):
        pass
    assert (killed / "mine/a").read_text() == "x"


def test_a_device_that_somebody_looks_at_is_gone_in_the_end(tmp_path: Path) -> None:
    """With the device open the kernel detaches it when that ends, and losetup says nothing of it."""
    disk.create(tmp_path / "o.img", 1 << 20)
    hold = 'exec 3<"$1"; echo; sleep 1'
    with ExitStack() as stack:
        device = stack.enter_context(disk.attached(tmp_path / "o.img", WholeDisk(1 << 20)))
        rest = stack.pop_all()
    with subprocess.Popen(["sh", "-c", hold, "sh", device], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        rest.close()
        assert workplace.loops_of(tmp_path / "o.img") == []


def test_mounts_below_a_folder_of_any_name_are_found(tmp_path: Path) -> None:
    point = tmp_path / "J\u00fcrgens disk\\1\t2"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    try:
        assert workplace.mounts_under(point) == [point]
    finally:
        subprocess.run(["umount", point], check=True)


def test_a_second_signal_does_not_interrupt_the_clean_up_of_an_outer_step() -> None:
    cleaned = []

    def work() -> None:
        with workplace.terminable():
            try:
                with workplace.terminable():
                    signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 143
    assert cleaned


def test_signals_that_the_shell_had_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with workplace.terminable():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
