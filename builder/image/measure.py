"""Reads an image and says what fills it: every file of every layer, with its owner and its cause."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from builder.errors import IntegrityError
from builder.image import files, gpucode
from builder.image.archive import open_image, short
from builder.image.dockerfile import SECRET_NAME
from builder.image.files import Contents, Entry
from builder.image.gpucode import GpuCode
from builder.image.owners import CAUSES, HIDDEN, SYSTEM, Owner, Owners
from builder.image.report import Dropped, Group, ImageReport, Installed, Layer, Library, merged
from builder.image.scan import PUBLIC, public_line
from builder.image.search import hide
from builder.progress import NoProgress, Progress

LIBRARIES = 40


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
    count = _Count(contents, Owners(depth, _engine(contents)))
    installed, dropped = _install(count.bodies(files.INSTALLED), compiles=labels.get("builder.jit") == "on")
    return ImageReport(
        reference=reference,
        digest=image.digest,
        platform=image.platform,
        others=image.others,
        layers=tuple(count.layer(number) for number in range(len(contents))),
        groups=tuple(replace(one, package=hide(one.package, PUBLIC)) for one in merged(count.groups())),
        libraries=tuple(count.libraries()),
        installed=installed,
        dropped=dropped,
        gpu_code=_gpu_code(gpucode.read(count.bodies(files.SLIMMED))),
        user=str(config.get("User") or ""),
        entrypoint=tuple(public_line(str(word), PUBLIC) for word in config.get("Entrypoint") or ()),
        env=dict(_public(str(setting)) for setting in config.get("Env") or ()),
        labels=labels,
    )


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

    def bodies(self, folder: str) -> list[tuple[str, bytes]]:
        """The builder's own records below `folder` that no later layer hides, by path."""
        found = []
        for number, one in enumerate(self.contents):
            for index, entry in enumerate(one.entries):
                body = one.records.get(entry.path, b"") if entry.path.startswith(folder) else b""
                if body and (number, index) not in self.gone:
                    found.append((entry.path, body))
        return sorted(found)

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
        largest = sorted(found, key=lambda one: (-one.packed, one.path))[:LIBRARIES]
        return [replace(one, path=hide(one.path, PUBLIC), package=hide(one.package, PUBLIC)) for one in largest]


def _engine(contents: Sequence[Contents]) -> frozenset[str]:
    """The wheels of the layer `engine`, by the builder's own record of it."""
    data = (body for one in contents for path, body in one.records.items() if path == f"{files.INSTALLED}engine.json")
    found = next((_record(f"{files.INSTALLED}engine.json", body) for body in data if body), None)
    return frozenset(found["packages"]) if found else frozenset()


def _gpu_code(found: GpuCode | None) -> GpuCode | None:
    """Without the secrets in it: it says what an image says, and anyone can make an image."""
    if found is None:
        return None
    rows = [
        replace(
            one,
            path=hide(one.path, PUBLIC),
            package=hide(one.package, PUBLIC),
            reason=public_line(one.reason, PUBLIC),
            error=public_line(one.error, PUBLIC),
            notes=tuple(public_line(note, PUBLIC) for note in one.notes),
        )
        for one in found.libraries
    ]
    stubs = [replace(one, path=hide(one.path, PUBLIC), package=hide(one.package, PUBLIC)) for one in found.stubs]
    return replace(found, libraries=tuple(rows), stubs=tuple(stubs))


def _install(records: Iterable[tuple[str, bytes]], *, compiles: bool) -> tuple[tuple[Installed, ...], tuple[Dropped, ...]]:
    """The builder's own records of what it installed and left out: opt/builder/layers/LAYER.json, one per layer.

    compiles: what only a compiler reads is in a layer of its own; else it was left out too.
    """
    installed, dropped = [], []
    for path, data in records:
        raw = _record(path, data)
        layer = str(raw.get("layer", ""))
        aside = [_dropped(row) for row in raw.get("toolkit", ())]
        back = {row.package: 0 for row in aside}
        for row in aside if compiles else ():
            back[row.package] += row.size
        installed += [_installed(layer, name, row, back.get(name, 0)) for name, row in raw["packages"].items()]
        dropped += [_dropped(row) for row in raw["dropped"]] + ([] if compiles else aside)
    return (
        tuple(sorted(installed, key=lambda row: (-row.installed, row.package))),
        tuple(sorted(dropped, key=lambda row: (-row.size, row.package, row.cause))),
    )


def _record(path: str, data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict) or not isinstance(raw["packages"], dict) or not isinstance(raw["dropped"], list):
            raise TypeError("expected packages and dropped")
        for row in (*raw["packages"].values(), *raw["dropped"], *raw.get("toolkit", ())):
            int(row.get("bytes", 0)), int(row.get("installed_bytes", 0)), int(row.get("kept_bytes", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise IntegrityError(f"/{path}: not a record of a layer: {exc}", hint="was it written by `builder build`?") from exc
    return raw


def _installed(layer: str, name: str, row: dict[str, Any], aside: int) -> Installed:
    kept = int(row.get("kept_bytes", 0)) + aside
    return Installed(name, str(row.get("version", "")), layer, int(row.get("installed_bytes", 0)), kept)


def _dropped(row: dict[str, Any]) -> Dropped:
    return Dropped(str(row.get("cause", "")), str(row.get("package", "")), int(row.get("bytes", 0)), int(row.get("files", 0)))


def _public(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, "(hidden)" if value and SECRET_NAME.search(name) else public_line(value, PUBLIC)
