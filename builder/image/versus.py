"""Two images, package by package. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from builder.image.owners import HIDDEN
from builder.image.report import ImageReport
from builder.units import format_size


@dataclass(frozen=True, slots=True)
class Difference:
    """before, after: compressed bytes of the package in the other image and in this one; 0 where it is not there."""

    package: str
    manager: str
    before: int
    after: int

    @property
    def signed(self) -> str:
        return signed(self.after - self.before)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Comparison:
    """rows: by how much they differ; packages of equal size are left out. before, after: compressed bytes of all layers."""

    reference: str
    before: int
    after: int
    rows: tuple[Difference, ...]

    @property
    def signed(self) -> str:
        return signed(self.after - self.before)

    def to_json(self) -> dict[str, Any]:
        rows = [one.to_json() for one in self.rows]
        return {"reference": self.reference, "before": self.before, "after": self.after, "packages": rows}


def compare(before: ImageReport, after: ImageReport) -> Comparison:
    """What `after` has more and less than `before`. What later layers hide is one row."""
    one, two = _sizes(before), _sizes(after)
    rows = [Difference(*key, one.get(key, 0), two.get(key, 0)) for key in one.keys() | two.keys()]
    rows = [row for row in rows if row.before != row.after]
    rows.sort(key=lambda row: (-abs(row.after - row.before), row.package))
    return Comparison(before.reference, before.packed, after.packed, tuple(rows))


def alone(found: ImageReport) -> ImageReport:
    """The report without the comparison with the untouched install."""
    return replace(found, installed=(), dropped=())


def signed(size: int) -> str:
    """
    >>> signed(2048), signed(-2048), signed(0)
    ('+2.00 KiB', '-2.00 KiB', '0 B')
    """
    return ("+" if size > 0 else "") + format_size(size)


def _sizes(found: ImageReport) -> dict[tuple[str, str], int]:
    sizes: dict[tuple[str, str], int] = {}
    for one in found.groups:
        key = (HIDDEN, "") if one.cause == HIDDEN else (one.package, one.manager)
        sizes[key] = sizes.get(key, 0) + one.packed
    return sizes
