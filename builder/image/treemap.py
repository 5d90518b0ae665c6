"""Squarified treemap: areas proportional to sizes, cells as square as they can be. Pure.

Source: Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000: fill the shorter side with a row, and close the row when one
more cell would make its worst aspect ratio worse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rect:
    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[float], area: Rect) -> list[Rect]:
    """One cell per size, in the order given, which must fall; together they fill `area` and none overlaps another.

    Raises ValueError for a size that is not positive, or one larger than that before it.
    """
    if any(size <= 0 for size in sizes) or any(later > one for one, later in itertools.pairwise(sizes)):
        raise ValueError("sizes must be positive and fall")
    cells: list[Rect] = []
    at, left = 0, area
    total = sum(sizes)
    while at < len(sizes):
        scale = left.width * left.height / total  # of what is left: errors of rounding do not add up
        side = min(left.width, left.height)
        end = at + 1
        while end < len(sizes) and _worst(sizes[at : end + 1], side, scale) <= _worst(sizes[at:end], side, scale):
            end += 1
        row, left = _row(sizes[at:end], left, scale, last=end == len(sizes))
        cells += row
        total -= sum(sizes[at:end])
        at = end
    return cells


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """The worst aspect ratio in a row along `side`."""
    thick = sum(row) * scale / side
    return max(max(thick / (size * scale / thick), (size * scale / thick) / thick) for size in row)


def _row(row: Sequence[float], area: Rect, scale: float, *, last: bool) -> tuple[list[Rect], Rect]:
    """The row's cells along the shorter side, and what is left beside them."""
    wide = area.width >= area.height
    side = area.height if wide else area.width
    thick = (area.width if wide else area.height) if last else sum(row) * scale / side
    cells, at, total = [], 0.0, sum(row)
    for size in row:
        length = side * size / total
        cells.append(Rect(area.x, area.y + at, thick, length) if wide else Rect(area.x + at, area.y, length, thick))
        at += length
    if wide:
        return cells, Rect(area.x + thick, area.y, area.width - thick, area.height)
    return cells, Rect(area.x, area.y + thick, area.width, area.height - thick)
