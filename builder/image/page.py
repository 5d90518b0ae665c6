"""The report on an image as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from dataclasses import dataclass

from builder import __version__, render
from builder.image.owners import CAUSES, HIDDEN
from builder.image.report import Group, ImageReport, Layer
from builder.image.treemap import Rect, squarify
from builder.image.versus import Comparison
from builder.units import count, format_size

# Of one lightness, so that white text stands on all of them (contrast 4.5 and more, WCAG 1.4.3), by day and by night.
COLOURS = {
    "nvidia": "#4a7a1e",
    "torch": "#b9481f",
    "engine": "#2563d4",
    "python packages": "#0b7a75",
    "python": "#7d4fd0",
    "bytecode": "#8a6410",
    "builder runtime": "#b02f7d",
    "application": "#33609a",
    "system": "#5d6976",
    "hidden by a later layer": "#a32a2a",
}
SMALLEST = 0.0012
"""Share of the map below which packages of a cause are drawn together: about 25 x 25 pixels of 960 x 560."""
ROWS = 30


@dataclass(frozen=True, slots=True)
class Tile:
    """A cell of the map, in percent of its width and height."""

    name: str
    cause: str
    text: str
    title: str
    rect: Rect

    @property
    def style(self) -> str:
        r = self.rect
        return f"left:{r.x:.3f}%;top:{r.y:.3f}%;width:{r.width:.3f}%;height:{r.height:.3f}%"


def html(report: ImageReport, compared: Comparison | None = None) -> str:
    """Every value is escaped by the template environment."""
    return render.html(
        "image-report.html.j2",
        report=report,
        compared=compared,
        tiles=tiles(report),
        figures=figures(report),
        bars=[(layer, bar(layer, report)) for layer in report.layers],
        dropped=report.left_out,
        gpu=report.gpu_code,
        most=max((before for _, before, _ in report.gpu_code.chips), default=1) or 1 if report.gpu_code else 1,
        colours=COLOURS,
        slug=slug,
        size=format_size,
        count=count,
        rows=ROWS,
        tool=__version__,
        hidden=HIDDEN,
    )


def tiles(report: ImageReport) -> list[Tile]:
    """The map: a block per cause, a cell per package in it, by compressed bytes."""
    causes = [one for one in report.causes if one.packed > 0]
    out = []
    whole = Rect(0, 0, 100, 100 * 560 / 960)  # cells are made square for the map's usual shape
    for cause, area in zip(causes, squarify([one.packed for one in causes], whole), strict=True):
        cells = _cells([one for one in report.groups if one.cause == cause.cause and one.packed > 0], report.packed)
        for cell, rect in zip(cells, squarify([one.packed for one in cells], area), strict=True):
            title = f"{cell.package} ({cause.cause}): {format_size(cell.packed)} compressed, {format_size(cell.size)} unpacked"
            flat = Rect(rect.x, rect.y * 960 / 560, rect.width, rect.height * 960 / 560)
            out.append(Tile(cell.package, cause.cause, format_size(cell.packed), f"{title}, {count(cell.files, 'file')}", flat))
    return out


def _cells(groups: list[Group], total: int) -> list[Group]:
    """The groups, those too small to be drawn as one."""
    large = [one for one in groups if one.packed >= SMALLEST * total]
    small = [one for one in groups if one.packed < SMALLEST * total]
    if small:
        packed, size = sum(one.packed for one in small), sum(one.size for one in small)
        name = small[0].package if len(small) == 1 else f"{len(small)} {'' if not large else 'smaller '}packages"
        large.append(Group(small[0].cause, name, "", packed, size, sum(one.files for one in small)))
    return sorted(large, key=lambda one: -one.packed)


def figures(report: ImageReport) -> list[tuple[str, str, str]]:
    """(value, name, remark) of the header."""
    largest = max(report.layers, key=lambda layer: layer.packed, default=None)
    out = [
        (format_size(report.packed), "compressed", "about: estimated" if report.estimated else "what a node pulls"),
        (format_size(report.size), "unpacked", count(sum(one.files for one in report.layers), "file")),
        (str(len(report.layers)), "layers", f"the largest {format_size(largest.packed)}" if largest else ""),
    ]
    whole, kept = sum(one.installed for one in report.installed), sum(one.kept for one in report.installed)
    if whole:
        out.append(
            (f"{100 * (whole - kept) / whole:.0f} %", "of the install left out", f"{format_size(whole - kept)} unpacked")
        )
    elif lost := sum(one.size for one in report.groups if one.cause == HIDDEN):
        out.append((format_size(lost), "hidden by later layers", "pulled, and never seen"))
    return out


def bar(layer: Layer, report: ImageReport) -> list[tuple[str, float, float, str]]:
    """(cause, x, width, title) of the layer's bar; percent of the largest layer."""
    largest = max(one.packed for one in report.layers) or 1
    out, at = [], 0.0
    for cause in CAUSES:
        if size := layer.causes.get(cause, 0):
            width = 100 * size / largest
            out.append((cause, round(at, 3), round(width, 3), f"{cause}: {format_size(size)}"))
            at += width
    return out


def slug(cause: str) -> str:
    """
    >>> slug("hidden by a later layer")
    'c-hidden-by-a-later-layer'
    """
    return "c-" + cause.replace(" ", "-")
