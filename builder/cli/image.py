"""`builder image`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli import image_gpu, image_sbom
from builder.cli.common import Session, options, table
from builder.errors import BuilderError, ConfigError, printable
from builder.units import count, format_size, parse_size

if TYPE_CHECKING:
    from builder.image.finding import ScanReport
    from builder.image.report import Group, ImageReport
    from builder.image.versus import Comparison

platform_option = click.option("--platform", default="", help="Such as linux/arm64; default: the only one, or this machine's.")


@click.group()
def command() -> None:
    """Look into an image: what fills it, and whether it holds what it must not."""


@command.command()
@options
@click.argument("image")
@platform_option
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Also write a page, one file.")
@click.option("--against", default="", help="Another image to compare with; none: leave out the comparison with the install.")
@click.option("--depth", type=click.IntRange(1, 9), default=2, help="Folders that name files which no package owns.")
@click.option("--budget", default="", help="Exit 6 if all layers together are larger, compressed: 9GiB.")
@click.option("--top", type=click.IntRange(1), default=12, help="Rows of each table; JSON has all.")
def report(
    session: Session, image: str, platform: str, html: Path | None, against: str, depth: int, budget: str, top: int
) -> None:
    """What fills IMAGE, a reference, an archive or an OCI layout: by cause, package, library and layer.

    Compared with the untouched install, as the image's build recorded it, or with another image.
    """
    from builder.image import inspect, page, versus

    limit = _size(budget)
    found = _read(session, image, platform, depth)
    if against == "none":
        found = versus.alone(found)
    other = _read(session, against, platform, depth) if against not in ("", "none") else None
    compared = versus.compare(other, found) if other else None
    if html is not None:
        html.write_text(page.html(found, compared))
        session.say(f"wrote {html}")
    error: BuilderError | None = None
    if limit:
        try:
            inspect.require_budget(found, limit)
        except BuilderError as exc:
            error = exc
    data = found.to_json() | ({"against": compared.to_json()} if compared else {})
    session.conclude(data, _human(found, compared, top), error)


@command.command()
@options
@click.argument("image")
@platform_option
@click.option("--allow", multiple=True, help="Fingerprint of a token that is public, as the finding names it. Repeatable.")
def scan(session: Session, image: str, platform: str, allow: tuple[str, ...]) -> None:
    """Search every layer, the configuration and the history of IMAGE for secrets and weights; exit 7 if there are any.

    IMAGE: a reference, an archive or an OCI layout.
    """
    from builder.image import inspect

    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        path = _archive(image, Path(work))
        found = inspect.scan_image(path, image, platform=platform, allow=allow, progress=session.progress)
    error: BuilderError | None = None
    try:
        inspect.require_clean(found.findings, image)
    except BuilderError as exc:
        error = exc
    session.conclude(found.to_json(), "" if error else _clean(found), error)


command.add_command(image_sbom.command, "sbom")


def _size(text: str) -> int:
    if not text:
        return 0
    try:
        return parse_size(text)
    except ValueError as exc:
        raise ConfigError(f"--budget: {exc}") from exc


def _read(session: Session, image: str, platform: str, depth: int) -> ImageReport:
    from builder.image import inspect

    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        path = _archive(image, Path(work))
        return inspect.report(path, image, platform=platform, depth=depth, progress=session.progress)


def _archive(image: str, work: Path) -> Path:
    """IMAGE itself where it is a file or a folder, else what the engine saves."""
    from builder.image import engine

    if Path(image).exists():
        return Path(image)
    archive = work / "image.tar"
    engine.save(image, archive)
    return archive


def _clean(found: ScanReport) -> str:
    lines = [
        f"{found.reference}: no secrets and no weights found",
        f"{count(found.files, 'file')} in {count(found.layers, 'layer')}, {format_size(found.size)} unpacked, {found.platform}",
    ]
    lines += [f"not read: {', '.join(found.others)} in the same archive; name one with --platform"] if found.others else []
    lines += [f"not opened, searched as it lies: {printable(one)}" for one in found.unread[:20]]
    return "\n".join(lines)


def _human(found: ImageReport, compared: Comparison | None, top: int) -> str:
    about = " (about: the archive holds layers uncompressed)" if found.estimated else ""
    others = f", beside {', '.join(found.others)}" if found.others else ""
    parts = [
        f"{printable(found.reference)}  {found.digest}\n{found.platform}{others}, user {printable(found.user or 'root')}\n"
        f"{format_size(found.packed)} compressed{about}, {format_size(found.size)} unpacked",
        _table("layer", [(one.digest[7:19], one.packed, one.size, one.files, one.made_by[:70]) for one in found.layers]),
        _table("cause", [(one.cause, one.packed, one.size, one.files, "") for one in found.causes]),
        _table("package", [(_name(one), one.packed, one.size, one.files, one.cause) for one in found.packages[:top]]),
        _table(
            "library", [(one.path.rpartition("/")[2], one.packed, one.size, 1, one.package) for one in found.libraries[:top]]
        ),
    ]
    if found.installed:
        kept, whole = sum(one.kept for one in found.installed), sum(one.installed for one in found.installed)
        rows = [[one.cause, format_size(one.size), str(one.files)] for one in found.left_out]
        parts.append(f"of {format_size(whole)} that the wheels install, {format_size(kept)} are kept; left out:")
        parts.append(table([["cause", "unpacked", "files"], *rows], right=(1, 2)))
        cut = sorted(found.installed, key=lambda one: one.kept - one.installed)[:top]
        rows = [[one.package, one.version, format_size(one.installed), format_size(one.kept)] for one in cut]
        parts.append(table([["package", "version", "installed", "kept"], *rows], right=(2, 3)))
    parts += image_gpu.human(found.gpu_code, top) if found.gpu_code else []
    if compared:
        rows = [[one.package, format_size(one.before), format_size(one.after), one.signed] for one in compared.rows[:top]]
        parts.append(f"against {printable(compared.reference)}: {compared.signed} compressed")
        parts.append(table([["package", "there", "here", "difference"], *rows], right=(1, 2, 3)))
    return "\n\n".join(parts)


def _name(one: Group) -> str:
    return f"{one.package} {one.version}".strip()


def _table(what: str, rows: list[tuple[str, int, int, int, str]]) -> str:
    head = [
        what,
        "compressed",
        "unpacked",
        "files",
        {"layer": "made by", "cause": ""}.get(what, "cause" if what == "package" else "package"),
    ]
    lines = [
        [printable(name), format_size(packed), format_size(size), str(files), printable(last)]
        for name, packed, size, files, last in rows
    ]
    return table([head, *lines], right=(1, 2, 3))
