"""`builder slim`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.common import Session, file_option, options, table
from builder.errors import ConfigError, printable
from builder.units import count, format_size

if TYPE_CHECKING:
    from builder.slim.chips import Chip
    from builder.slim.report import Report

BAR = 24
WIDE = 32
ALL = """\
profile all: NVIDIA's licences for CUDA, cuDNN and others allow no modification of their libraries,
so profile oss, the default, leaves those as they are. What comes out now is for your own machines:
do not pass it on."""


@click.command()
@options
@file_option
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="X.Y[,X.Y]",
    help="Chips to keep code for: 9.0 is an H100. Default: image.gpu_archs.",
)
@click.option(
    "--profile",
    type=click.Choice(["oss", "all"]),
    default="oss",
    show_default=True,
    help="all: also what no licence allows to pass on.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option(
    "--verify", is_flag=True, help="Before a file is replaced: cuobjdump lists what was kept, and it loads as before."
)
@click.option(
    "--cuobjdump",
    metavar="FILE",
    default="",
    help="The program for --verify. Default: PATH, or the wheel nvidia-cuda-cuobjdump.",
)
@click.option("--workers", type=click.IntRange(1), default=None, help="Files at a time. Default: one per core.")
@click.option(
    "--report", "output", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Also write the report, as JSON."
)
def command(
    session: Session, file: Path | None, paths: tuple[Path, ...], gpus: tuple[str, ...], profile: str, dry_run: bool,
    verify: bool, cuobjdump: str, workers: int | None, output: Path | None,
) -> None:  # fmt: skip
    """Take the GPU code for other chips out of the shared libraries in PATH, files or folders.

    Changes files in place, each at once or not at all; what cannot be read to the last byte stays as it is, and so does what
    the profile may not modify. Run it twice: nothing changes the second time.
    """
    from builder.slim import proof, tree

    if verify and dry_run:
        raise ConfigError("--verify proves what --dry-run does not write", hint="leave one of them out")
    wanted = _chips(session, gpus, file)
    program = proof.find_cuobjdump(cuobjdump) if verify else None
    if output is not None and not os.access(output if output.exists() else output.parent, os.W_OK):
        raise ConfigError(f"{output}: cannot be written", hint="name another file for --report")
    if profile == "all":
        session.say(ALL)
    task = -1

    def done(path: str, size: int, total: int) -> None:
        nonlocal task
        if not path:
            task = session.progress.add("slim", total)
            return
        session.progress.note(task, printable(path.rpartition("/")[2]))
        session.progress.advance(task, size)

    report = tree.slim(
        paths, wanted, profile, dry_run=dry_run, workers=workers, cuobjdump=program, load=verify, progress=done
    )  # fmt: skip
    error = report.failure()
    session.progress.done(task, "failed" if error else "")
    if output is not None:
        _write(output, report)
    session.conclude(report.to_json(), human(report), error)


def _chips(session: Session, gpus: tuple[str, ...], file: Path | None) -> tuple[Chip, ...]:
    """Those of --gpu, else those of the description."""
    from builder.slim.chips import Chip

    words = [word.strip() for text in gpus for word in text.split(",") if word.strip()]
    if not words and (file is not None or Path("builder.yaml").exists()):
        loaded = session.load(file)
        words = list(loaded.spec.image.gpu_archs)
        if not words:
            raise ConfigError(f"{loaded.path}: image.gpu_archs is empty: no chip to keep code for", hint="--gpu 9.0 is an H100")
    if not words:
        raise ConfigError("no chip to keep code for", hint="--gpu 9.0 is an H100; -f builder.yaml takes image.gpu_archs")
    return tuple(dict.fromkeys(Chip.parse(word) for word in words))


def _write(path: Path, report: Report) -> None:
    try:
        path.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}", hint="name another file") from exc


def human(report: Report) -> str:
    """The report for a terminal."""
    parts = [_libraries(report), _chart(report), _sums(report), _notes(report)]
    return "\n\n".join(part for part in parts if part)


def _libraries(report: Report) -> str:
    """The largest saving first. Files that keep every byte are in the notes, or only counted."""
    from builder.slim.report import order

    shown = [one for one in report.files if one.pruned and (one.changed if not report.dry_run else one.status == "pruned")]
    if not shown:
        return ""
    rows = [["library", "package", "unpacked", "", "compressed", "", "code for"]]
    for one in sorted(shown, key=lambda one: one.packed_after - one.packed_before):
        kept = " ".join(_chip(chip).removeprefix("sm_") for chip in sorted(one.after, key=order))
        sizes = [format_size(one.size_before), f"→ {format_size(one.size_after)}"]
        packed = [format_size(one.packed_before), f"→ {format_size(one.packed_after)}"]
        rows.append([_short(one.path), printable(one.decision.package)[:18], *sizes, *packed, kept])
    return table(rows, right=(2, 4))


def _chart(report: Report) -> str:
    """Per chip: what stays as a full bar, what goes as a thin one."""
    chips = report.chips
    if not chips:
        return ""
    full, thin = ("█", "░") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", ".")
    most = max(before for before, _ in chips.values())
    rows = [["GPU code for", "before", "after", ""]]
    for chip, (before, after) in chips.items():
        length = max(1, round(BAR * before / most)) if before else 0
        stays = min(length, max(1, round(BAR * after / most))) if after else 0
        rows.append(
            [_chip(chip), format_size(before), format_size(after) if after else "-", full * stays + thin * (length - stays)]
        )
    return table(rows, right=(1, 2))


def _chip(name: str) -> str:
    return name.replace("compute_", "PTX ").replace("lto_", "LTO-IR ")


def _sums(report: Report) -> str:
    (before, after), (packed, repacked) = report.size, report.packed
    verb = "would become" if report.dry_run else "are now"
    changed = sum(one.changed for one in report.files)
    holes = f", {format_size(report.zeroed)} of it holes" if report.zeroed else ""
    about = "at most " if report.dry_run else "about "
    lines = [
        f"{changed} of {count(len(report.files), 'file')} with GPU code; for "
        f"{', '.join(report.gpus)}, profile {report.profile}",
        f"unpacked    {format_size(before)} {verb} {format_size(after)}{holes}",
        f"compressed  about {format_size(packed)} {verb} {about}{format_size(repacked)}",
    ]
    if report.verified and changed:
        lines.append("verified    cuobjdump lists what was kept, and each library loads as it did before")
    if not report.redistributable and changed:
        lines.append("not for redistribution: the profile also modifies what its licence does not allow to modify")
    return "\n".join(lines)


def _notes(report: Report) -> str:
    """What a reader must know: what is compiled at run time, chips without code, what was left, what could not be proven."""
    notes = []
    if report.jit:
        notes.append(
            f"{_names(list(report.jit))}: PTX where no code fits, which the driver compiles at the first use, in every new "
            "container: keep CUDA_CACHE_PATH on a volume, or warm it before"
        )
    for gpu, paths in report.without.items():
        if paths:
            notes.append(f"{_names(list(paths))}: nothing in it runs on {gpu}")
    said: dict[str, list[str]] = {}
    for one in report.files:
        for note in one.notes:
            said.setdefault(note.replace(one.path.rpartition("/")[2], "it"), []).append(one.path)
    notes += [f"{_names(paths)}: {note}" for note, paths in said.items()]
    if not report.dry_run and any(one.size_after < one.size_before for one in report.files):
        notes.append("strip and objcopy can break a library that became shorter: use them before this, never after")
    licence = [one for one in report.left if one.status == "licence"]
    if licence:
        saved = sum(sum(one.before.values()) - sum((one.pruned.after or {}).values()) for one in licence if one.pruned)
        notes.append(
            f"{_names([one.path for one in licence])}: {format_size(saved)} of GPU code for other chips, left by profile oss: "
            "their licences do not clearly allow to modify them. --profile all does, for your own machines only"
        )
    notes += [f"{one.path}: left as it was: {one.reason}" for one in report.left if one.status == "left" and not one.fault]
    width = shutil.get_terminal_size((100, 24)).columns
    return "\n".join(textwrap.fill(printable(note), width, initial_indent="- ", subsequent_indent="  ") for note in notes)


def _names(paths: list[str]) -> str:
    shown = [path.rpartition("/")[2] for path in paths[:4]]
    return ", ".join(shown) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def _short(path: str) -> str:
    name = printable(path.rpartition("/")[2])
    return name if len(name) <= WIDE else f"{name[:20]}…{name[-(WIDE - 21) :]}"
