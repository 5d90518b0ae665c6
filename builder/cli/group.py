"""The lazy group and the one place where errors become text and exit codes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from builder import __version__
from builder.cli.lazy import LazyGroup
from builder.errors import BuilderError, CapabilityError, ConfigError

# name: (module, what it does). The text stands here so that --help imports no command.
COMMANDS = {
    "init": ("builder.cli.init", "Inspect a model and write a commented builder.yaml."),
    "demo": ("builder.cli.demo", "Run the whole chain on a small real model."),
    "doctor": ("builder.cli.doctor", "Say what this machine can do, and what to install."),
    "weights": ("builder.cli.weights", "Push, pull, verify and repair model weights."),
    "lock": ("builder.cli.lock", "Resolve every wheel of the image, and pin it by hash."),
    "render": ("builder.cli.render", "Print the Dockerfile."),
    "lint": ("builder.cli.lint", "Find in Dockerfiles what makes a CUDA image large, slow or unsafe."),
    "build": ("builder.cli.build", "Build the serving image."),
    "slim": ("builder.cli.slim", "Take the GPU code for other chips out of shared libraries."),
    "image": ("builder.cli.image", "Report on an image; scan it for secrets and weights."),
    "verify": ("builder.cli.verify", "Load-test the built image: phases, correctness, budgets."),
    "bake": ("builder.cli.bake", "Write and verify a pre-seeded node volume."),
    "report": ("builder.cli.report", "Render verify reports."),
    "cache": ("builder.cli.cache", "The models that this node keeps; and what engines compiled, captured."),
    "schema": ("builder.cli.schema", "Print the JSON Schema of builder.yaml."),
    "completion": ("builder.cli.completion", "Print the completion script of a shell."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="builder")
def group() -> None:
    """Make a large language model start fast, and prove it.

    One file, builder.yaml, describes a model server. From it builder prepares what must be in place before a pod
    starts: weights in verified chunks, a slim image, a pre-seeded node volume; and measures the cold start.

    `builder demo` shows all of it on this machine.
    """


def run(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if args is None else args)
    # A CI system ends a job with the one, a closed terminal with the other: containers and loop devices must not stay.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _terminated)
    # pydantic would read the metadata of every installed package for plugins of its own; none has a say in builder.yaml.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        group.main(words, prog_name="builder", standalone_mode=False, color=_colour())
        code = 0
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except click.UsageError as exc:
        code = _usage(exc, words)
    except BuilderError as exc:
        code = _report(exc, words)
    except BrokenPipeError:
        # The reader of our stdout went away (`builder ... | head`); nothing is wrong and nobody is left to tell.
        sys.stderr.close()
        code = 0
    except OSError as exc:
        # A file or folder that the command names and no step below explained better.
        what = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
        error = CapabilityError(what, hint="check that the path exists and that you may use it")
        error.__cause__ = exc
        code = _report(error, words)
    except Exception as exc:  # noqa: BLE001  # the last line of defence: a defect of ours, told without a traceback
        code = _report(
            BuilderError(f"internal error: {type(exc).__name__}: {exc}", hint="run again with -vv and report it"), words
        )
    sys.exit(code)


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _usage(exc: click.UsageError, words: list[str]) -> int:
    if exc.ctx is not None and not _json(words):
        click.echo(exc.ctx.get_usage(), err=True)
    where = f"`{exc.ctx.command_path} --help` shows what it takes" if exc.ctx else ""
    return _report(ConfigError(exc.format_message(), hint=where), words)


def _report(exc: BuilderError, words: list[str]) -> int:
    if any(w in words for w in ("-vv", "-vvv")) or words.count("-v") > 1:
        traceback.print_exception(exc)
    if _json(words) and not exc.shown:
        click.echo(json.dumps(exc.to_json()))
    click.echo(click.style("error: ", fg="red", bold=True) + exc.message, err=True, color=_colour())
    if exc.hint:
        click.echo("\n" + click.style("hint: ", fg="cyan", bold=True) + exc.hint, err=True, color=_colour())
    return exc.exit_code


def _colour() -> bool | None:
    """False where NO_COLOR is set (no-color.org); None lets click ask whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _json(words: list[str]) -> bool:
    asked = [word.removeprefix("--format=") for word in words if word.startswith("--format=")]
    asked += [value for option, value in itertools.pairwise(words) if option == "--format"]
    return asked[-1:] == ["json"]
