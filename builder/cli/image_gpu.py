"""The part of `builder image report` on GPU code, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.cli.common import table
from builder.errors import printable
from builder.units import count, format_size

if TYPE_CHECKING:
    from builder.image.gpucode import GpuCode


def human(found: GpuCode, top: int) -> list[str]:
    """Paragraphs: which chips find code, the code by chip, the libraries with the most of it; and the stubs."""
    return [*(_code(found, top) if found.gpus else ()), *(_stubs(found, top) if found.stubs else ())]


def _code(found: GpuCode, top: int) -> list[str]:
    chips = [[printable(name), format_size(before), format_size(after)] for name, before, after in found.chips]
    rows = [
        [printable(one.name), printable(one.package), format_size(one.code_before), format_size(one.code_after), remark]
        for one in found.coded[:top]
        for remark in [printable(one.remark)]
    ]
    head = (
        f"GPU code for {', '.join(map(printable, found.gpus))}, profile {printable(found.profile)}: "
        f"{format_size(found.after)} of {format_size(found.before)} in {count(len(found.coded), 'file')} kept"
    )
    told = [head, *(runs(gpu, missing, len(found.coded)) for gpu, missing in found.runs_on.items())]
    if found.jit:
        names = ", ".join(printable(one.name) for one in found.jit)
        told.append(f"PTX that the driver compiles at the first use, into CUDA_CACHE_PATH, in every new container: {names}")
    told += [f"not understood, and left whole: {printable(one.name)}: {printable(one.reason)}" for one in found.unread[:top]]
    if len(found.unread) > top:
        told.append(f"not understood, and left whole: {count(len(found.unread) - top, 'more file')}")
    told += [f"not proven: {', '.join(map(printable, names))}: {printable(note)}" for note, names in found.notes.items()]
    return [
        "\n".join(told),
        table([["chip", "code before", "after"], *chips], right=(1, 2)),
        table([["library", "package", "code before", "after", ""], *rows], right=(2, 3)),
    ]


def _stubs(found: GpuCode, top: int) -> list[str]:
    rows = [
        [printable(one.name), printable(one.package), format_size(one.before), format_size(one.after), printable(one.stub)]
        for one in found.stubs[:top]
    ]
    head = "in the place of libraries that the image does without, stubs that end a process which calls them:"
    return [head, table([["library", "package", "before", "after", "image.stubs"], *rows], right=(2, 3))]


def runs(gpu: str, missing: tuple[str, ...], libraries: int) -> str:
    """
    >>> runs("9.0", (), 3), runs("8.0", ("libfa3.so",), 3)
    ('9.0: 3 of 3 have code for it', '8.0: 2 of 3 have code for it; not libfa3.so')
    """
    names = ", ".join(map(printable, missing[:3])) + (", ..." if len(missing) > 3 else "")
    some = f"{libraries - len(missing)} of {libraries} have code for it"
    return f"{printable(gpu)}: {some}" + (f"; not {names}" if missing else "")
