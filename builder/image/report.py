"""What fills an image, by cause, package, library and layer; what its build left out; and how it differs from another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builder.errors import BudgetError, IntegrityError
from builder.image import files
from builder.image.archive import open_image, short
from builder.image.dockerfile import SECRET_NAME
from builder.image.files import Contents, Entry
from builder.image.owners import CAUSES, HIDDEN, SYSTEM, Owner, Owners
from builder.image.scan import PUBLIC, public_line
from builder.progress import NoProgress, Progress
from builder.units import format_size

LIBRARIES = 40


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
        return plain | {name: [one.to_json() for one in getattr(self, name)] for name in lists}


def report(path: Path, reference: str, *, platform: str = "", depth: int = 2, progress: Progress | None = None) -> ImageReport:
    """What the image in the file or folder `path` consists of.

    depth: folders that name a group of files which no package owns.
    Raises IntegrityError for a layer that cannot be read.
    """
    with open_image(path, platform) as image:
        task = (progress := progress or NoProgress()).add("image: read layers", sum(blob.size for blob in image.layers))
        contents = []
        try:
            for blob in image.layers:
                contents.append(files.read(image, blob))
                progress.advance(task, blob.size)
        finally:
            progress.done(task)
        config = image.config.get("config") or {}
    labels = {str(name): public_line(str(value), PUBLIC) for name, value in (config.get("Labels") or {}).items()}
    count = _Count(contents, Owners(depth, labels.get("builder.engine", "").partition("==")[0].lower()))
    installed, dropped = _install(contents, count.gone)
    return ImageReport(
        reference=reference,
        digest=image.digest,
        platform=image.platform,
        others=image.others,
        layers=tuple(count.layer(number) for number in range(len(contents))),
        groups=tuple(merged(count.groups())),
        libraries=tuple(count.libraries()),
        installed=installed,
        dropped=dropped,
        user=str(config.get("User") or ""),
        entrypoint=tuple(public_line(str(word), PUBLIC) for word in config.get("Entrypoint") or ()),
        env=dict(_public(str(setting)) for setting in config.get("Env") or ()),
        labels=labels,
    )


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


class _Count:
    """Every entry of every layer with its owner and cause."""

    def __init__(self, contents: Sequence[Contents], owners: Owners) -> None:
        self.contents = contents
        self.owners = owners
        links: dict[str, str] = {}
        for one in contents:
            links |= one.links
        for path, target in links.items():
            owners.link(path, target)
        for one in contents:
            for path, data in one.records.items():
                owners.learn(path, data)
        self.gone = files.hidden([one.entries for one in contents], links)

    def rows(self, number: int) -> Iterator[tuple[Entry, Owner, str]]:
        for index, entry in enumerate(self.contents[number].entries):
            owner = self.owners.owner(entry.path)
            yield entry, owner, HIDDEN if (number, index) in self.gone else self.owners.cause(entry.path, owner)

    def groups(self) -> Iterator[Group]:
        for number, one in enumerate(self.contents):
            for entry, owner, cause in self.rows(number):
                if entry.size or entry.packed:
                    yield Group(cause, owner.package, owner.manager, entry.packed, entry.size, 1, owner.version)
            if not one.entries:
                yield Group(SYSTEM, "(an empty layer)", "path", one.packed, 0, 0)

    def layer(self, number: int) -> Layer:
        one = self.contents[number]
        causes = dict.fromkeys(CAUSES, 0)
        for entry, _, cause in self.rows(number):
            causes[cause] += entry.packed
        if not one.entries:
            causes[SYSTEM] = one.packed
        return Layer(
            digest=one.blob.digest,
            media_type=one.blob.media_type,
            packed=one.packed,
            size=one.size,
            files=sum(entry.kind == "file" for entry in one.entries),
            estimated=one.estimated,
            made_by=public_line(short(one.blob.made_by), PUBLIC),
            causes={name: size for name, size in causes.items() if size},
        )

    def libraries(self) -> list[Library]:
        """The largest shared objects that are not hidden."""
        found = []
        for number in range(len(self.contents)):
            for entry, owner, cause in self.rows(number):
                name = entry.path.rpartition("/")[2]
                if cause != HIDDEN and entry.size and (name.endswith(".so") or ".so." in name):
                    found.append(Library(entry.path, owner.package, entry.packed, entry.size, number))
        return sorted(found, key=lambda one: (-one.packed, one.path))[:LIBRARIES]


def _install(contents: Sequence[Contents], gone: set[tuple[int, int]]) -> tuple[tuple[Installed, ...], tuple[Dropped, ...]]:
    """The builder's own records of what it installed and left out: opt/builder/layers/LAYER.json, one per layer."""
    installed, dropped = [], []
    for number, one in enumerate(contents):
        for index, entry in enumerate(one.entries):
            data = one.records.get(entry.path, b"") if entry.path.startswith(files.INSTALLED) else b""
            if data and (number, index) not in gone:
                raw = _record(entry.path, data)
                layer = str(raw.get("layer", ""))
                installed += [_installed(layer, name, row) for name, row in raw["packages"].items()]
                dropped += [_dropped(row) for row in raw["dropped"]]
    return (
        tuple(sorted(installed, key=lambda row: (-row.installed, row.package))),
        tuple(sorted(dropped, key=lambda row: (-row.size, row.package, row.cause))),
    )


def _record(path: str, data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict) or not isinstance(raw["packages"], dict) or not isinstance(raw["dropped"], list):
            raise TypeError("expected packages and dropped")
        for row in (*raw["packages"].values(), *raw["dropped"]):
            int(row.get("bytes", 0)), int(row.get("installed_bytes", 0)), int(row.get("kept_bytes", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise IntegrityError(f"/{path}: not a record of a layer: {exc}", hint="was it written by `builder build`?") from exc
    return raw


def _installed(layer: str, name: str, row: dict[str, Any]) -> Installed:
    return Installed(
        name, str(row.get("version", "")), layer, int(row.get("installed_bytes", 0)), int(row.get("kept_bytes", 0))
    )


def _dropped(row: dict[str, Any]) -> Dropped:
    return Dropped(str(row.get("cause", "")), str(row.get("package", "")), int(row.get("bytes", 0)), int(row.get("files", 0)))


def _public(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, "(hidden)" if value and SECRET_NAME.search(name) else public_line(value, PUBLIC)
