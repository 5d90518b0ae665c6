"""One file: read it, decide what its chips can use, write that, read it again and compare."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.slim import chips, elf, fatbin, loose, shrink
from builder.slim.chips import Chip, Code
from builder.slim.elf import PT_LOAD, Elf, Source, Unfit
from builder.slim.fatbin import Container
from builder.slim.layout import Layout, Mismatch, blocks
from builder.slim.loose import Loose


@dataclass(frozen=True)
class Pruned:
    """What there was to do with one file.

    status: "pruned"; "no-gpu-code"; "nothing-to-drop"; "left": not understood, or none of the chips could use the rest.
    reason, error: when left, a sentence with section and byte range, and a word for programs.
    size_before, size_after: bytes of the file.  zeroed: bytes of size_after that were other chips' code and are holes now.
    unmoved: why the containers were not moved together, where they were not.
    before, after: bytes of GPU code by what it was compiled for: "sm_90", "sm_90a", "compute_80" (PTX), "lto_75" (LTO-IR),
    "sm_90 (loose)" (outside containers); the headers of entries included.
    jit: kept PTX that the driver compiles when one of the chips first needs it, because no cubin fits.
    runs_on: those of the chips that find code in the result.
    kept: of each kept cubin, in file order, what it is for and the hex sha256 of its payload.
    """

    status: str
    size_before: int
    size_after: int
    reason: str = ""
    error: str = ""
    unmoved: str = ""
    zeroed: int = 0
    before: dict[str, int] | None = None
    after: dict[str, int] | None = None
    jit: tuple[str, ...] = ()
    runs_on: tuple[str, ...] = ()
    containers: int = 0
    kept: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


@dataclass(frozen=True)
class _Plan:
    """held: every container, and the numbers of its kept entries.  dropped: cubins outside containers."""

    held: tuple[tuple[Container, tuple[int, ...]], ...]
    loose: tuple[Loose, ...]
    dropped: tuple[Loose, ...]

    @property
    def changes(self) -> bool:
        return bool(self.dropped) or any(len(kept) < len(container.entries) for container, kept in self.held)

    def codes(self, *, kept: bool) -> list[tuple[Code, int, bool]]:
        """What it was compiled for, bytes, and whether it is outside containers."""
        found = [
            (entry.code, entry.size, False)
            for container, numbers in self.held
            for i, entry in enumerate(container.entries)
            if not kept or i in numbers
        ]
        gone = set(self.dropped) if kept else set()
        return found + [(one.code, one.size, True) for one in self.loose if one not in gone]


def prune(source: Path, target: Path | None, gpus: Sequence[Chip]) -> Pruned:
    """Write what `gpus` can use of `source` to the new file `target`; None: only say what would be done.

    The source is only read. The target is written if and only if the status is "pruned"; then it was read again: every kept
    piece has the sha256 that it had, every other byte is the source's, the ELF file is consistent, and pruning it once more
    would change nothing. Sizes are the same without a target. Memory: a few MiB, plus some 100 bytes for each container.
    Raises FileExistsError if the target is there, OSError as the file system does, and layout.Mismatch where the result is
    not what it should be; nothing is left of the target then.
    """
    with contextlib.closing(_Opened(source)) as opened:
        size = opened.source.size
        try:
            whole = elf.read(opened.source)
            plan = _plan(opened.source, whole, gpus)
            if plan.changes:
                check(whole, size)  # a file that a loader would refuse is not ours to change
                _apart(whole, plan)
                reached = _reached(opened.source, whole, plan)
                made, unmoved = _layout(opened.source, whole, plan)
        except Unfit as exc:
            return Pruned("left", size, size, reason=exc.reason, error=exc.error)
        found = _counted(plan, gpus)
        if not plan.held and not plan.loose:
            return Pruned("no-gpu-code", size, size)
        if not plan.changes:
            return Pruned("nothing-to-drop", size, size, **found)
        if not found["runs_on"]:
            return Pruned(
                "left", size, size, **{**found, "after": found["before"]}, reason=_nothing(plan, gpus), error="nothing-left"
            )
        result = Pruned(
            "pruned", size, made.size, unmoved=unmoved, zeroed=made.zeros, kept=_digests(opened.source, plan), **found
        )
        if target:
            _write(opened.source, made, target, _Wanted(result, reached, gpus))
        return result


class _Opened:
    """A file, open for reading."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.source = Source(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def _plan(source: Source, whole: Elf, gpus: Sequence[Chip]) -> _Plan:
    found = fatbin.containers(source, whole.sections)
    bare = loose.cubins(source, whole.sections, [(one.offset, one.end) for one in found])
    held = []
    for container in found:
        kept = chips.keep([entry.code for entry in container.entries], gpus)
        held.append((container, tuple(i for i, stays in enumerate(kept) if stays)))
    dropped = tuple(one for one in bare if not any(chips.runs(one.code, gpu) for gpu in gpus))
    return _Plan(tuple(held), tuple(bare), dropped)


def _counted(plan: _Plan, gpus: Sequence[Chip]) -> dict[str, Any]:
    after = plan.codes(kept=True)
    return {
        "before": _sums(plan.codes(kept=False)),
        "after": _sums(after),
        "jit": _jit(plan, gpus),
        "runs_on": tuple(
            str(gpu) for gpu in gpus if any(chips.runs(code, gpu) or chips.compiles(code, gpu) for code, _, _ in after)
        ),
        "containers": len(plan.held),
    }


def _sums(codes: list[tuple[Code, int, bool]]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for code, size, outside in codes:
        counted[f"{code} (loose)" if outside else str(code)] += size
    return dict(sorted(counted.items()))


def _jit(plan: _Plan, gpus: Sequence[Chip]) -> tuple[str, ...]:
    needed = set()
    for container, kept in plan.held:
        codes = [container.entries[i].code for i in kept]
        for gpu in gpus:
            if not any(chips.runs(code, gpu) for code in codes):
                needed |= {code for code in codes if code.kind == "ptx" and chips.compiles(code, gpu)}
    return tuple(sorted(map(str, needed)))


def _nothing(plan: _Plan, gpus: Sequence[Chip]) -> str:
    has = ", ".join(_sums(plan.codes(kept=False)))
    return f"it has code for {has} and none that {', '.join(map(str, gpus))} could use"


def _layout(source: Source, whole: Elf, plan: _Plan) -> tuple[Layout, str]:
    """The smaller file, or the same file with zeros; and in that case why."""
    try:
        made, unmoved = shrink.shrunk(source, whole, plan.held), ""
    except shrink.Unmovable as exc:
        made, unmoved = Layout(), str(exc)
        made.copy(0, source.size)
    done = {".nv_fatbin"} if not unmoved else set()
    return _zeroed(made, plan, done), unmoved


def _zeroed(made: Layout, plan: _Plan, done: set[str]) -> Layout:
    """`made`, and in all sections but those in `done` each container's kept entries moved to its front, zeros behind them."""
    edits: list[tuple[int, int, list[tuple[int, int]]]] = []  # begin, end in the old file; what is copied there instead
    sizes: dict[int, bytes] = {}
    for container, kept in plan.held:
        if container.section.name in done or len(kept) == len(container.entries):
            continue
        parts = [(container.entries[i].offset, container.entries[i].offset + container.entries[i].size) for i in kept]
        edits.append((container.begin, container.end, parts))
        sizes[container.offset + 8] = struct.pack("<Q", sum(end - begin for begin, end in parts))
    edits += [(one.offset, one.offset + one.size, []) for one in plan.dropped]
    return made.edited(sorted(edits), sizes)


def _digests(source: Source, plan: _Plan) -> tuple[tuple[str, str], ...]:
    """Every kept cubin's payload; those outside containers too."""
    places = [
        (entry.payload[0], entry.payload[1], str(entry.code))
        for container, kept in plan.held
        for i, entry in enumerate(container.entries)
        if i in kept and entry.code.kind == "cubin"
    ]
    gone = set(plan.dropped)
    places += [(one.offset, one.size, f"{one.code} (loose)") for one in plan.loose if one not in gone]
    return tuple((name, _sha256(source, offset, size)) for offset, size, name in sorted(places))


def _sha256(source: Source, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    for block in blocks(source, offset, size):
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Wanted:
    """What the written file must be. reached: see _reached."""

    result: Pruned
    reached: dict[int, int]
    gpus: Sequence[Chip]


def _apart(whole: Elf, plan: _Plan) -> None:
    """No other section has bytes in one that changes: they could be anything. Raises Unfit("header")."""
    changing = {container.section.index: container.section for container, _ in plan.held}
    changing |= {one.section.index: one.section for one in plan.dropped}
    for one in changing.values():
        for other in whole.sections:
            if other.index != one.index and other.offset < one.end and one.offset < other.end and other.size:
                raise Unfit("header", f"section {other.name} at byte {other.offset:,} and {one.name} share bytes")


def _reached(source: Source, whole: Elf, plan: _Plan) -> dict[int, int]:
    """The address of each word that the loader fills with the address of a container: the container's number.

    Raises Unfit("pointer") where one leads into the middle of something that changes: whoever follows it would find zeros.
    """
    starts: dict[int, int] = {}
    ranges: list[tuple[int, int]] = []
    for number, (container, kept) in enumerate(plan.held):
        if (address := whole.address(container.offset)) is not None:
            starts[address] = number
            if len(kept) < len(container.entries):
                ranges.append((address, address + container.end - container.offset))
    for one in plan.dropped:
        if (address := whole.address(one.offset)) is not None:
            ranges.append((address, address + one.size))
    sections = {container.section for container, _ in plan.held} | {one.section for one in plan.dropped}
    within = [(one.addr, one.addr + one.size) for one in sections if one.flags & elf.SHF_ALLOC]
    ranges.sort()
    found: dict[int, int] = {}
    for pointer in elf.pointers(source, whole, within):
        if pointer.target in starts:
            found[pointer.at] = starts[pointer.target]
            continue
        at = bisect.bisect_right(ranges, (pointer.target, 1 << 64)) - 1
        if at >= 0 and ranges[at][0] < pointer.target < ranges[at][1]:
            raise Unfit("pointer", f"a pointer leads to {pointer.target:#x}, into the middle of what would change")
    return found


def _write(source: Source, made: Layout, target: Path, wanted: _Wanted) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        made.write(source, descriptor)
        _prove(source, made, Source(descriptor), wanted)
        os.fsync(descriptor)
    except BaseException:
        target.unlink()
        raise
    finally:
        os.close(descriptor)


def _prove(source: Source, made: Layout, written: Source, wanted: _Wanted) -> None:
    """Read the result again. Raises Mismatch."""
    try:
        whole = elf.read(written)
        check(whole, written.size)
        plan = _plan(written, whole, wanted.gpus)
        reached = _reached(written, whole, plan)
    except Unfit as exc:
        raise Mismatch(f"the result cannot be read again: {exc.reason}") from exc
    found = _counted(plan, wanted.gpus)
    if found["after"] != wanted.result.after or found["containers"] != wanted.result.containers:
        raise Mismatch("the result has other GPU code than planned")
    if plan.changes:
        raise Mismatch("the result could be pruned once more")
    if _digests(written, plan) != wanted.result.kept:
        raise Mismatch("a kept cubin has another sha256 than before")
    if reached != wanted.reached:
        raise Mismatch("a pointer leads to another container than before")
    made.compare(source, written)


def check(whole: Elf, size: int) -> None:
    """What a loader asks of program headers (System V gABI, chapter 5; glibc's elf/dl-load.c). Raises Unfit("header")."""
    loads = [s for s in whole.segments if s.kind == PT_LOAD]
    for number, one in enumerate(loads):
        after = loads[number + 1] if number + 1 < len(loads) else None
        if one.align & (one.align - 1):
            raise Unfit("header", f"a LOAD segment's alignment is {one.align:#x}, no power of two")
        if one.align > 1 and one.offset % one.align != one.vaddr % one.align:
            raise Unfit("header", f"a LOAD segment's offset {one.offset:#x} and address {one.vaddr:#x} disagree")
        if after and after.vaddr < one.vaddr + one.memsz:
            raise Unfit("header", f"LOAD segments overlap at address {after.vaddr:#x}")
    for s in whole.segments:
        if s.filesz and s.offset + s.filesz > size:
            raise Unfit("header", f"a segment ends at byte {s.offset + s.filesz:,} of {size:,}")
        inside = [one for one in loads if one.vaddr <= s.vaddr and s.vaddr + s.filesz <= one.vaddr + one.memsz]
        if s.kind != PT_LOAD and s.filesz and inside and s.offset - s.vaddr != inside[0].offset - inside[0].vaddr:
            raise Unfit("header", f"a segment at address {s.vaddr:#x} and the LOAD segment around it disagree")
    for section in whole.sections:
        if section.flags & elf.SHF_ALLOC and section.size and whole.place(section.addr) != section.offset:
            raise Unfit("header", f"section {section.name} is not where its address is mapped")
