"""The command line as a user meets it, in a real process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from builder.cli.group import COMMANDS, group
from tests.bounds import BOUND_S

HEAVY = ("boto3", "botocore", "docker", "testcontainers", "huggingface_hub", "pydantic", "yaml", "jinja2", "rich", "obstore")


def builder(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from builder.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL, check=False)


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys\nfrom builder.cli.group import group\n"
        "try: group.main(['--help'])\nexcept SystemExit: pass\n"
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]\nassert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "weights" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    todo = [(name, command)]
    while todo:
        path, current = todo.pop()
        assert current.help, path
        if isinstance(current, click.Group):
            todo += [(f"{path} {n}", c) for n, c in current.commands.items()]
        for parameter in current.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{path}: {parameter.name}"


def test_help_of_a_subcommand_names_its_group() -> None:
    with click.Context(group) as ctx:
        assert group.list_commands(ctx) == list(COMMANDS)


def test_unknown_command_is_usage() -> None:
    done = builder("wat")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: No such command 'wat'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_json_is_one_object(tmp_path: Path) -> None:
    done = builder("render", "--format", "json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "config"


def test_off_a_terminal_there_is_no_ansi(tmp_path: Path) -> None:
    done = builder("render", cwd=tmp_path)
    assert "\x1b" not in done.stdout + done.stderr
    assert "hint: `builder init` writes one" in done.stderr


def test_a_traceback_needs_vv(tmp_path: Path) -> None:
    assert "Traceback" not in builder("render", cwd=tmp_path).stderr
    assert "Traceback" in builder("render", "-vv", cwd=tmp_path).stderr


@pytest.mark.parametrize(("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_on_a_terminal_unless_no_color_is_set(tmp_path: Path, env: dict[str, str], colour: bool) -> None:
    program = (
        "import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', 'from builder.cli import main; main()', 'render']) >> 8)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert (b"\x1b[31m" in done.stdout) is colour


def test_the_last_format_counts(tmp_path: Path) -> None:
    assert builder("render", "--format", "json", "--format", "human", cwd=tmp_path).stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_what_is_open(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A command that holds something is ended from outside: its clean-up runs, as for a container or a loop device."""
    program = (
        "import click, time, pathlib, signal\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # these tests may run under nohup themselves
        "from builder.cli.group import group, run\n"
        "@click.command()\n"
        "def hold():\n"
        "    try:\n"
        "        print('held', flush=True); time.sleep(30)\n"
        "    finally:\n"
        f"        pathlib.Path({str(tmp_path / 'cleaned')!r}).touch()\n"
        "group.get_command = lambda ctx, name: hold\n"
        "run(['hold'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.send_signal(number)
        assert child.wait(BOUND_S) == code
    assert (tmp_path / "cleaned").exists()
