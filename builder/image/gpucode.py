"""The GPU code of an image, library by library, as its build wrote it down: opt/builder/slim/LAYER.json. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from builder.errors import IntegrityError
from builder.units import format_size


@dataclass(frozen=True, slots=True)
class GpuLibrary:
    """One file with GPU code. before, after: bytes of code by chip, "sm_90" or for PTX "compute_90"; {} if not understood.

    status: "pruned", "nothing-to-drop", or for the `reason` "left" or, by its licence, "licence".
    error: the reason as a word, such as "container".  notes: what the proofs could not prove, a sentence each.
    zeroed: bytes of it that are zeros now, because they could not be cut out.
    jit: PTX that the driver compiles for a chip of the image, because there is no other code for it.
    runs_on: chips of the image that have code here.
    """

    path: str
    package: str
    layer: str
    status: str
    reason: str
    before: dict[str, int]
    after: dict[str, int]
    size_before: int
    size_after: int
    zeroed: int
    jit: tuple[str, ...]
    runs_on: tuple[str, ...]
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def code_before(self) -> int:
        return sum(self.before.values())

    @property
    def code_after(self) -> int:
        return sum(self.after.values())

    @property
    def remark(self) -> str:
        """What is out of the ordinary: why it was left, what it compiles when it starts, what is a hole now."""
        found = [f"left: {self.reason}"] if self.status in ("left", "licence") else []
        found += [f"the driver compiles {', '.join(self.jit)}"] if self.jit else []
        found += [f"of the file {format_size(self.zeroed)} are zeros"] if 100 * self.zeroed > self.size_after else []
        return "; ".join(found)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"jit": list(self.jit), "runs_on": list(self.runs_on), "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class StubLibrary:
    """A stub in the place of a library. stub: as image.stubs names it. before, after: bytes of the file."""

    path: str
    package: str
    stub: str
    before: int
    after: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class GpuCode:
    """gpus: the chips that the image is for; () where only stubs were put in.  profile: oss or all.

    libraries, stubs: the largest first, by code and by what went.
    """

    gpus: tuple[str, ...]
    profile: str
    libraries: tuple[GpuLibrary, ...]
    stubs: tuple[StubLibrary, ...] = ()

    @property
    def before(self) -> int:
        return sum(one.code_before for one in self.libraries)

    @property
    def after(self) -> int:
        return sum(one.code_after for one in self.libraries)

    @property
    def chips(self) -> list[tuple[str, int, int]]:
        """(chip, bytes before, bytes after) of all libraries together, by the chip's number; PTX last."""
        names = {name for one in self.libraries for name in (*one.before, *one.after)}
        rows = [
            (n, sum(o.before.get(n, 0) for o in self.libraries), sum(o.after.get(n, 0) for o in self.libraries)) for n in names
        ]
        return sorted(rows, key=lambda row: (not row[0].startswith("sm_"), _number(row[0]), row[0]))

    @property
    def jit(self) -> list[GpuLibrary]:
        """Libraries of which a start compiles PTX."""
        return [one for one in self.libraries if one.jit]

    @property
    def coded(self) -> list[GpuLibrary]:
        """Libraries of which it is known what code they hold."""
        return [one for one in self.libraries if one.before]

    @property
    def unread(self) -> list[GpuLibrary]:
        """Libraries that were not understood, and left whole: they may hold code for any chip."""
        return [one for one in self.libraries if not one.before]

    @property
    def notes(self) -> dict[str, list[str]]:
        """What could not be proven, to the libraries of which it could not."""
        found: dict[str, list[str]] = {}
        for one in self.libraries:
            for note in one.notes:
                found.setdefault(note.replace(one.name, "it"), []).append(one.name)
        return found

    @property
    def runs_on(self) -> dict[str, tuple[str, ...]]:
        """Chip to the libraries that have no code for it; none: all of them run."""
        return {gpu: tuple(one.name for one in self.coded if gpu not in one.runs_on) for gpu in self.gpus}

    def to_json(self) -> dict[str, Any]:
        return {
            "gpus": list(self.gpus),
            "profile": self.profile,
            "before": self.before,
            "after": self.after,
            "chips": [{"chip": name, "before": before, "after": after} for name, before, after in self.chips],
            "runs_on": [{"gpu": gpu, "without_code": list(missing)} for gpu, missing in self.runs_on.items()],
            "libraries": [one.to_json() for one in self.libraries],
            "stubs": [one.to_json() for one in self.stubs],
        }


def read(records: Iterable[tuple[str, bytes]]) -> GpuCode | None:
    """The records (path, content) as one; None if there are none. Raises IntegrityError for one that is not of this form."""
    gpus: tuple[str, ...] = ()
    profile = ""
    libraries: list[GpuLibrary] = []
    stubs: list[StubLibrary] = []
    for path, body in records:
        try:
            raw = json.loads(body)
            gpus, profile = tuple(map(str, raw["gpus"])), str(raw["profile"])
            libraries += [_library(str(raw["layer"]), row) for row in raw["libraries"]]
            stubs += [_stub(row) for row in raw["stubs"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise IntegrityError(
                f"/{path}: not a record of GPU code: {exc!r}", hint="was it written by `builder build`?"
            ) from exc
    libraries.sort(key=lambda one: (-one.code_before, one.path))
    stubs.sort(key=lambda one: (one.after - one.before, one.path))
    return GpuCode(gpus, profile, tuple(libraries), tuple(stubs)) if gpus or stubs else None


def _library(layer: str, row: dict[str, Any]) -> GpuLibrary:
    return GpuLibrary(
        path=str(row["path"]).lstrip("/"),
        package=str(row["package"]),
        layer=layer,
        status=str(row["status"]),
        reason=str(row["reason"]),
        before=_chips(row["before"]),
        after=_chips(row["after"]),
        size_before=int(row["size_before"]),
        size_after=int(row["size_after"]),
        zeroed=int(row["zeroed"]),
        jit=tuple(map(str, row["jit"])),
        runs_on=tuple(map(str, row["runs_on"])),
        error=str(row.get("error", "")),
        notes=tuple(map(str, row.get("notes", ()))),
    )


def _stub(row: dict[str, Any]) -> StubLibrary:
    names = (str(row["path"]).lstrip("/"), str(row["package"]), str(row["stub"]))
    return StubLibrary(*names, before=int(row["bytes_before"]), after=int(row["bytes_after"]))


def _chips(found: dict[str, Any]) -> dict[str, int]:
    return {str(name): int(size) for name, size in found.items()}


def _number(chip: str) -> int:
    """
    >>> _number("sm_90a"), _number("compute_100"), _number("sm_90 (loose)")
    (90, 100, 90)
    """
    return int("0" + "".join(c for c in chip.partition("_")[2].partition(" ")[0] if c.isdigit()))
