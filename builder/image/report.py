"""What fills an image, by cause, package, library and layer; what its build left out; and how it differs from another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from builder.errors import BudgetError
from builder.image.gpucode import GpuCode
from builder.image.owners import HIDDEN
from builder.units import format_size


@dataclass(frozen=True, slots=True)
class Group:
    """Files of one package under one cause. packed: compressed bytes. size: unpacked. manager: python, debian or path."""

    cause: str
    package: str
    manager: str
    packed: int
    size: int
    files: int
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Library:
    """A shared object. layer: number of the layer it lies in, from 0."""

    path: str
    package: str
    packed: int
    size: int
    layer: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Layer:
    """packed, size: bytes, compressed and not. estimated: `packed` is a guess; the archive holds the layer uncompressed.

    made_by: the Dockerfile line, as history tells it. causes: compressed bytes by cause; they add up to `packed`.
    """

    digest: str
    media_type: str
    packed: int
    size: int
    files: int
    estimated: bool
    made_by: str
    causes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Installed:
    """A package as its wheel installs it, and what the build kept of it. Bytes, unpacked."""

    package: str
    version: str
    layer: str
    installed: int
    kept: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Dropped:
    """What the build left out of a package. size: bytes, unpacked."""

    cause: str
    package: str
    size: int
    files: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What an image consists of. groups: every file is in one; largest first.

    installed, dropped: what the image's build wrote down of the untouched install; empty where it wrote nothing.
    gpu_code: what it wrote down of GPU code; None where it named no chips.
    """

    reference: str
    digest: str
    platform: str
    others: tuple[str, ...]
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    libraries: tuple[Library, ...]
    installed: tuple[Installed, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    gpu_code: GpuCode | None = None
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def packed(self) -> int:
        return sum(layer.packed for layer in self.layers)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def estimated(self) -> bool:
        return any(layer.estimated for layer in self.layers)

    @property
    def causes(self) -> list[Group]:
        """One group per cause, largest first."""
        return merged(replace(group, package="", manager="", version="") for group in self.groups)

    @property
    def packages(self) -> list[Group]:
        """One group per package, whatever the cause, largest first; what is hidden stays apart."""
        return merged(replace(group, cause=HIDDEN if group.cause == HIDDEN else "") for group in self.groups)

    @property
    def left_out(self) -> list[Dropped]:
        """One row per cause, largest first."""
        totals: dict[str, list[int]] = {}
        for one in self.dropped:
            row = totals.setdefault(one.cause, [0, 0])
            row[0], row[1] = row[0] + one.size, row[1] + one.files
        rows = [Dropped(cause, "", size, count) for cause, (size, count) in totals.items()]
        return sorted(rows, key=lambda row: (-row.size, row.cause))

    def to_json(self) -> dict[str, Any]:
        names = ("reference", "digest", "platform", "packed", "size", "estimated", "user", "env", "labels")
        lists = ("layers", "causes", "packages", "groups", "libraries", "installed", "dropped")
        plain = {name: getattr(self, name) for name in names}
        plain |= {"others": list(self.others), "entrypoint": list(self.entrypoint)}
        plain["gpu_code"] = self.gpu_code.to_json() if self.gpu_code else None
        return plain | {name: [one.to_json() for one in getattr(self, name)] for name in lists}


def require_budget(found: ImageReport, limit_bytes: int) -> None:
    """Raise BudgetError (exit 6) with the largest causes if the compressed layers are larger than the limit together."""
    if found.packed <= limit_bytes:
        return
    lines = [f"  {one.cause}: {format_size(one.packed)}" for one in found.causes[:5]]
    packages = ", ".join(f"{one.package} {format_size(one.packed)}" for one in found.packages[:5])
    about = "about " if found.estimated else ""
    raise BudgetError(
        f"{found.reference}: {about}{format_size(found.packed)} compressed ({found.packed:,} bytes), "
        f"verify.budget.image_size {format_size(limit_bytes)} ({limit_bytes:,} bytes); largest causes:\n"
        + "\n".join(lines)
        + f"\nlargest packages: {packages}",
        hint="see what can go with `builder image report --html FILE`, or raise the budget",
        where={
            "budgets": ["image_size"],
            "found": found.packed,
            "limit": limit_bytes,
            "causes": {one.cause: one.packed for one in found.causes},
        },
    )


def merged(groups: Iterable[Group]) -> list[Group]:
    """Groups of the same cause, package and manager as one, largest first."""
    sums: dict[tuple[str, str, str], Group] = {}
    for one in groups:
        key = (one.cause, one.package, one.manager)
        had = sums.get(key)
        if had:
            one = replace(one, packed=had.packed + one.packed, size=had.size + one.size, files=had.files + one.files)
        sums[key] = one
    return sorted(sums.values(), key=lambda one: (-one.packed, -one.size, one.cause, one.package))
