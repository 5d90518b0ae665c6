"""What pruning did, file by file and chip by chip."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError, IntegrityError
from builder.slim.licences import Decision
from builder.slim.prune import Pruned

SAMPLE, STRIDE = 64 << 10, 2 << 20
FAULTS: tuple[type[BuilderError], ...] = (CapabilityError, ClaimError, IntegrityError, ConfigError)


@dataclass(frozen=True)
class Fault:
    """Why the command fails. kind: the `code` of an error class, such as "integrity"."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Item:
    """One file that holds GPU code, or that could not be read as one.

    path: as the command line leads to it.  links: its other names.
    pruned: what was done; for a file that the profile leaves, what would be done.
    status: as in `pruned`, or "licence": left by the profile; "failed": see fault.  reason: one sentence, if it was left.
    packed_before, packed_after: about what it weighs in a compressed layer, bytes.
    notes: what the proof has to say, where it says more than yes.
    """

    path: str
    links: tuple[str, ...]
    decision: Decision
    status: str
    reason: str
    pruned: Pruned | None
    packed_before: int = 0
    packed_after: int = 0
    notes: tuple[str, ...] = ()
    fault: Fault | None = None

    @property
    def changed(self) -> bool:
        return self.status == "pruned"

    @property
    def size_before(self) -> int:
        return self.pruned.size_before if self.pruned else 0

    @property
    def size_after(self) -> int:
        return self.pruned.size_after if self.pruned and self.changed else self.size_before

    @property
    def zeroed(self) -> int:
        """Of size_after, what takes no room on this disk, and next to none in a compressed layer."""
        return self.pruned.zeroed if self.pruned and self.changed else 0

    @property
    def before(self) -> dict[str, int]:
        return (self.pruned.before if self.pruned else None) or {}

    @property
    def after(self) -> dict[str, int]:
        return (self.pruned.after if self.pruned and self.changed else None) or self.before

    def to_json(self) -> dict[str, Any]:
        found = asdict(self.pruned) if self.pruned else {}
        if not self.changed and found:
            found["would"] = {"size_after": found["size_after"], "zeroed": found["zeroed"], "after": found["after"]}
            found |= {"size_after": found["size_before"], "zeroed": 0, "after": found["before"]}
        return found | {
            "path": self.path,
            "links": list(self.links),
            "package": self.decision.package,
            "licence": self.decision.licence,
            "licence_read_in": self.decision.where,
            "decision": "modify" if self.decision.modify else "leave",
            "status": self.status,
            "reason": self.reason,
            "packed_before": self.packed_before,
            "packed_after": self.packed_after,
            "notes": list(self.notes),
            "fault": asdict(self.fault) if self.fault else None,
        }


@dataclass(frozen=True)
class Report:
    """All files, by path. verified: whether the proof ran.  plain: ELF files without GPU code, which are not in `files`."""

    gpus: tuple[str, ...]
    profile: str
    dry_run: bool
    verified: bool
    files: tuple[Item, ...]
    plain: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Unpacked bytes before and after, of `files`."""
        return sum(one.size_before for one in self.files), sum(one.size_after for one in self.files)

    @property
    def zeroed(self) -> int:
        """Of the bytes after, those that are holes."""
        return sum(one.zeroed for one in self.files)

    @property
    def packed(self) -> tuple[int, int]:
        """About the compressed bytes before and after."""
        return sum(one.packed_before for one in self.files), sum(one.packed_after for one in self.files)

    @property
    def chips(self) -> dict[str, tuple[int, int]]:
        """Bytes of GPU code before and after, for each chip that it was compiled for."""
        before: Counter[str] = Counter()
        after: Counter[str] = Counter()
        for one in self.files:
            before.update(one.before)
            after.update(one.after)
        return {chip: (before[chip], after[chip]) for chip in sorted(before, key=order)}

    @property
    def jit(self) -> dict[str, tuple[str, ...]]:
        """PTX that a target compiles when it first runs, by library."""
        return {one.path: one.pruned.jit for one in self.files if one.pruned and one.pruned.jit and one.status != "failed"}

    @property
    def without(self) -> dict[str, tuple[str, ...]]:
        """For each of the chips, the libraries that hold GPU code but none for it."""
        coded = [one for one in self.files if one.pruned and one.before]
        return {
            gpu: tuple(one.path for one in coded if one.pruned and gpu not in one.pruned.runs_on)
            for gpu in self.gpus
        }  # fmt: skip

    @property
    def left(self) -> tuple[Item, ...]:
        """What was not looked at to the end, or was left by the profile."""
        return tuple(one for one in self.files if one.status in ("left", "licence"))

    @property
    def redistributable(self) -> bool:
        return self.profile != "all"

    def to_json(self) -> dict[str, Any]:
        return {
            "gpus": list(self.gpus),
            "profile": self.profile,
            "redistributable": self.redistributable,
            "dry_run": self.dry_run,
            "verified": self.verified,
            "bytes_before": self.size[0],
            "bytes_after": self.size[1],
            "bytes_zeroed": self.zeroed,
            "packed_before": self.packed[0],
            "packed_after": self.packed[1],
            "chips": {chip: {"before": before, "after": after} for chip, (before, after) in self.chips.items()},
            "jit": {path: list(kept) for path, kept in self.jit.items()},
            "without_code": {gpu: list(paths) for gpu, paths in self.without.items()},
            "files_without_gpu_code": self.plain,
            "files": [one.to_json() for one in self.files],
        }

    def failure(self) -> BuilderError | None:
        """The error to end with, if any file has one; all are named."""
        faults = [one.fault for one in self.files if one.fault]
        if not faults:
            return None
        kinds = {one.kind for one in faults}
        kind = next((one for one in FAULTS if one.code in kinds), ConfigError)
        first = next((one for one in faults if one.kind == kind.code), faults[0])
        if len(faults) == 1:
            return kind(first.message, hint=first.hint)
        lines = "\n".join(f"  {one.message}" for one in faults)
        return kind(f"{len(faults)} files are as they were:\n{lines}", hint=first.hint)


def order(chip: str) -> tuple[int, str]:
    """Cubins, PTX, LTO-IR; each by number.

    >>> sorted(["lto_75", "compute_80", "sm_100", "sm_90a", "sm_90"], key=order)
    ['sm_90', 'sm_90a', 'sm_100', 'compute_80', 'lto_75']
    """
    kind, _, number = chip.partition("_")
    return 1000 * ("sm", "compute", "lto").index(kind) + int("".join(c for c in number if c.isdigit())), chip


def weight(path: Path) -> int:
    """About what a file weighs compressed, bytes, by zlib on 64 KiB of each 2 MiB.

    An estimate: most GPU code is compressed already, other code is not, so the size alone says little.
    """
    raw = packed = 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for at in range(0, max(1, size), STRIDE):
            file.seek(at)
            block = file.read(SAMPLE)
            raw, packed = raw + len(block), packed + len(zlib.compress(block, 1))
    return round(size * packed / raw) if raw else 0
