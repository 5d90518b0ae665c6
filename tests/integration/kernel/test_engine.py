"""scripts/engine starts real engines: each in namespaces of its own, with nothing of this machine's engine in sight.

A mount namespace with empty folders for all that an engine writes, a network namespace, and a process namespace whose end is
the end of every process in it. Programs earlier on PATH play the slow and the broken machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bounds import BOUND_S
from tests.conftest import missing

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.usefixtures("loop_root")]

SCRIPT = Path(__file__).parents[3] / "scripts/engine"
ALONE = [
    "unshare", "--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c",
]  # fmt: skip
EMPTY = """
set -eu
state=/var/lib/builder-engine
for folder in /run /var/lib/docker $state; do mkdir -p $folder && mount -t tmpfs none $folder; done
ip link set lo up
image() { printf x >/run/x && tar -C /run -c x | docker import --message "$1" - "$1" >/dev/null; }
images() { docker images --format '{{.Repository}} {{.ID}}'; }
engines() { ps -eo comm= | grep -E '^(dockerd|containerd)$' | sort | xargs; }
"""

# In the place of dockerd: ends unless containerd listens.
CONNECT = "import socket; socket.socket(socket.AF_UNIX).connect('/var/lib/builder-engine/containerd.sock')"
PATIENT = f'{sys.executable} -c "{CONNECT}" || exit 9'

Alone = Callable[..., tuple[int, str, str]]


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    """`alone(script, containerd="...", **variables)`: exit status, stdout and stderr of a script where no engine is.

    A keyword that names a program puts these lines before it.
    """
    for program in ("dockerd", "containerd", "unshare"):
        if shutil.which(program) is None:
            missing("docker", f"{program} is not installed (make engine)")

    def run(script: str, **variables: str) -> tuple[int, str, str]:
        path = tmp_path / "bin"
        path.mkdir(exist_ok=True)
        (path / "engine").unlink(missing_ok=True)
        (path / "engine").symlink_to(SCRIPT)
        for program in {"containerd", "dockerd"} & set(variables):
            real = shutil.which(program)
            (path / program).write_text(f'#!/bin/bash\n{variables.pop(program)}\nexec {real} "$@"\n')
            (path / program).chmod(0o755)
        environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            [*ALONE, EMPTY + script], env=environ, capture_output=True, text=True, check=False, timeout=BOUND_S
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_containerd_may_take_its_time_and_images_outlive_a_restart(alone: Alone) -> None:
    """dockerd has a limit for the containerd that it starts itself: so it must find one that listens already."""
    script = """
        engine
        image first && images
        engine stop && engines
        engine && images && engines
    """
    rc, out, err = alone(script, containerd="sleep 2", dockerd=PATIENT)
    assert rc == 0, err
    before, none, after, running = out.splitlines()
    assert before == after
    assert before.startswith("first ")
    assert (none, running) == ("", "containerd dockerd")
    said = re.findall(r"engine: (starting \w+|stopped \w+|Docker)", err)
    assert said == ["starting containerd", "starting dockerd", "Docker", "stopped dockerd", "stopped containerd",
                    "starting containerd", "starting dockerd", "Docker"]  # fmt: skip


def test_what_a_killed_engine_left_is_no_obstacle(alone: Alone) -> None:
    """Pid files whose numbers are other programs' now, as after a reboot; a socket; a containerd that outlived its dockerd."""
    script = """
        engine && image first && images
        kill -9 $(cat $state/dockerd.pid)
        engine && images && engines
        kill -9 $(cat $state/dockerd.pid) $(cat $state/containerd.pid)
        sleep 1000 & other=$!
        echo $other >$state/dockerd.pid && echo $other >$state/containerd.pid
        test -S $state/containerd.sock
        engine && images && engines
        kill -9 $(cat $state/dockerd.pid) $(cat $state/containerd.pid)
        echo $other >$state/dockerd.pid && echo $other >$state/containerd.pid
        engine stop && kill -0 $other && echo lives
    """
    rc, out, err = alone(script, containerd="sleep 1", dockerd=PATIENT)
    assert rc == 0, err
    first, *rest = out.splitlines()
    assert first.startswith("first ")
    assert rest == [first, "containerd dockerd", first, "containerd dockerd", "lives"]


def test_an_engine_whose_dockerd_managed_its_containerd_goes_on_with_its_images(alone: Alone) -> None:
    """As earlier versions of the script started it. A killed dockerd takes its containerd along, though not at once."""
    script = """
        mkdir -p $state && echo '{"features": {"containerd-snapshotter": true}}' >$state/daemon.json
        dockerd --config-file $state/daemon.json >$state/dockerd.log 2>&1 & echo $! >$state/dockerd.pid
        until docker version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
        image first && images && engines
        kill -9 $(cat $state/dockerd.pid)
        engine && images && engines
    """
    rc, out, err = alone(script)
    assert rc == 0, err
    first, *rest = out.splitlines()
    assert first.startswith("first ")
    assert rest == ["containerd dockerd", first, "containerd dockerd"]


def test_the_machines_own_containerd_is_taken_as_dockerd_would(alone: Alone) -> None:
    script = """
        mount -t tmpfs none /var/lib/containerd
        containerd >/dev/null 2>&1 &
        until ctr version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
        engine && engines && image first && ctr --namespace moby images ls -q
    """
    rc, out, err = alone(script)
    assert rc == 0, err
    assert out.splitlines() == ["containerd dockerd", "docker.io/library/first:latest"]


ONCE = "[ -e /run/tried ] || { touch /run/tried; echo no luck; exit 3; }"


@pytest.mark.parametrize("program", ["containerd", "dockerd"])
def test_a_program_that_ends_early_is_started_once_more(alone: Alone, program: str) -> None:
    rc, out, err = alone("engine && engines", **{program: ONCE})
    assert rc == 0, err
    assert out == "containerd dockerd\n"
    assert err.count(f"engine: starting {program}") == 2


@pytest.mark.parametrize("program", ["containerd", "dockerd"])
def test_a_program_that_always_ends_early_is_said_with_the_ends_of_both_logs(alone: Alone, program: str) -> None:
    rc, _, err = alone("engine", **{program: "echo no luck; exit 3"})
    assert rc == 4
    assert f"engine: {program} ended before it answered, twice\n\nhint: read /var/lib/builder-engine/dockerd.log and " in err
    assert f"--- the end of /var/lib/builder-engine/{program}.log\nno luck\nno luck\n" in err


@pytest.mark.parametrize("program", ["containerd", "dockerd"])
def test_a_program_that_hangs_meets_the_limit(alone: Alone, program: str) -> None:
    rc, _, err = alone("engine", **{program: "echo I hang; sleep 1000"}, BUILDER_ENGINE_WAIT_S="3")
    assert rc == 4
    assert f"engine: {program} did not answer within 3 s" in err
    assert "\nI hang\n" in err
