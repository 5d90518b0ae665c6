"""builder cache: what lies in a models root, who uses it, and making room."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import units
from builder.cli import capture
from builder.cli.common import Session, options, table
from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.format.volume import MODELS_ROOT

if TYPE_CHECKING:
    from builder.transfer.cache import Budget, Entry
    from builder.transfer.faults import Fault


def root_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --root."""
    return click.option(
        "--root", type=click.Path(path_type=Path), default=MODELS_ROOT, show_default=True, help="The models root of this node."
    )(function)


def budget(ctx: click.Context, param: click.Parameter, value: str | None) -> Budget | None:
    """A click callback: 200GiB, or 80% of the disk."""
    from builder.transfer.cache import Budget

    try:
        return Budget.parse(value) if value else None
    except ValueError as exc:
        raise click.BadParameter(f"{value}: {exc}") from exc


@click.group("cache")
def command() -> None:
    """Show, check and shrink the models that this node keeps: ls, prune, verify. Compile caches: capture, show.

    A model is fetched once per node, however many pods or processes ask, and stays while any of them uses it.
    BUILDER_CACHE_SIZE (or `weights pull --cache-size`) lets the longest unused ones make room for new ones.
    """


command.add_command(capture.capture)
command.add_command(capture.show)


@command.command()
@root_option
@options
def ls(session: Session, root: Path) -> None:
    """List the models: size, last use, and who uses them now."""
    from builder.transfer.cache import listing

    shown = [_row(entry) for entry in listing(root, progress=session.progress)]
    rows = [["MODEL", "DIGEST", "STATE", "SIZE", "LAST USED", "IN USE"]]
    for row in shown:
        size, ago = units.format_size(row["size"]), _ago(row["used_at"])
        rows.append([row["name"] or "-", row["digest"][:19], row["state"], size, ago, _users(row)])
    human = table(rows, right=(3,)) if shown else f"{root}: no models here"
    session.show({"root": str(root), "models": shown}, human)


@command.command()
@root_option
@click.option("--size", "limit", callback=budget, metavar="SIZE", help="Until this is left: 200GiB, or 80% of the disk.")
@click.option("--all", "everything", is_flag=True, help="All that is not in use.")
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options
def prune(session: Session, root: Path, limit: Budget | None, everything: bool, dry_run: bool, yes: bool) -> None:
    """Remove the longest unused models; never one that is in use, and none that no cache fetched."""
    from builder.transfer import cache

    if (limit is None) == (not everything):
        raise ConfigError("how much may stay?", hint="give one of --size and --all")
    most = limit.limit(root) if limit and root.is_dir() else 0
    gone = cache.prune(root, most, dry_run=True, progress=session.progress)
    if not dry_run:
        if gone and not yes:
            _ask(session, root, gone)
        gone = cache.prune(root, most, progress=session.progress)
    freed, word = sum(e.size for e in gone), "would remove" if dry_run else "removed"
    lines = [f"{word} {e.digest}  {units.format_size(e.size)}" for e in gone]
    data = {"root": str(root), "dry_run": dry_run, "removed": [e.to_json() for e in gone], "freed_bytes": freed}
    session.show(data, "\n".join([*lines, f"{word} {units.count(len(gone), 'model')}, {units.format_size(freed)}"]))


@command.command()
@root_option
@click.option("--deep", is_flag=True, help="Also each chunk's sha256, not only its CRC64NVME.")
@options
def verify(session: Session, root: Path, deep: bool) -> None:
    """Read every byte of every complete model. Exits 3 and names all that is bad."""
    from builder.transfer.cache import listing
    from builder.transfer.check import check_folder
    from builder.transfer.lease import hold

    found: dict[Path, list[Fault]] = {}
    for entry in listing(root, progress=session.progress):
        lease = hold(entry.folder)
        try:
            if entry.folder.is_dir():  # not a download, and not evicted since
                found[entry.folder] = check_folder(entry.folder, deep=deep, progress=session.progress)
        finally:
            lease.release()
    models = [{"folder": str(folder), "faults": [f.to_json() for f in faults]} for folder, faults in found.items()]
    data = {"root": str(root), "ok": not any(found.values()), "models": models}
    human = "\n".join(f"{folder.name}: {units.count(len(f), 'fault') if f else 'good'}" for folder, f in found.items())
    session.conclude(data, human or f"{root}: no models here", _error(root, found))


def _row(entry: Entry) -> dict[str, Any]:
    from builder.transfer.check import local_manifest
    from builder.transfer.lease import holders

    state, name = "partial", ""
    if entry.folder.exists():
        state = "complete" if entry.complete else "damaged"
        try:
            name = local_manifest(entry.folder).name
        except BuilderError:
            state = "damaged"
    return {**entry.to_json(), "state": state, "name": name, "pids": holders(entry.folder) if entry.in_use else []}


def _users(row: dict[str, Any]) -> str:
    if not row["in_use"]:
        return "kept: no cache's" if row["kept"] else ""
    return f"process {', '.join(map(str, row['pids']))}" if row["pids"] else "yes"


def _ago(used_at: float) -> str:
    if not used_at:
        return "-"
    seconds = max(0.0, time.time() - used_at)
    for size, unit in ((86_400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{units.format_seconds(round(seconds))} ago"


def _ask(session: Session, root: Path, gone: list[Entry]) -> None:
    what = f"{units.count(len(gone), 'model')} ({units.format_size(sum(e.size for e in gone))}) from {root}"
    if not sys.stdin.isatty():
        raise ConfigError(f"this would remove {what}", hint="add --yes, or see what would go with --dry-run")
    for entry in gone:
        session.say(f"{entry.digest}  {units.format_size(entry.size)}  last used {_ago(entry.used_at)}")
    click.confirm(f"Remove {what}?", abort=True, err=True)


def _error(root: Path, found: dict[Path, list[Fault]]) -> IntegrityError | None:
    lines = [f"  {folder.name[:12]}: {fault}" for folder, faults in found.items() for fault in faults]
    if not lines:
        return None
    bad = [folder for folder, faults in found.items() if faults]
    more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
    return IntegrityError(
        "\n".join([f"{root}: {units.count(len(lines), 'fault')} in {units.count(len(bad), 'model')}", *lines[:20], *more]),
        hint=f"run `builder weights repair --local {bad[0]} --store URL`",
        where={"file": str(bad[0])},
    )
