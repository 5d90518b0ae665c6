"""Compute capabilities, and which compiled code a chip can run.

Sources: CUDA C++ Programming Guide, "Binary Compatibility" (a cubin runs on chips of the same major version and the same or
a later minor one, and never across discrete and Tegra chips), "PTX Compatibility" (PTX compiles for any later chip) and
"Family-Specific Architecture Features" (a suffix `a` runs on that one chip, `f` on its family).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from builder.errors import ConfigError

TEGRA = frozenset({53, 62, 72, 87, 88, 101})
"""Integrated chips that share a major version with discrete ones. Neither runs the other's cubins."""


@dataclass(frozen=True, order=True)
class Chip:
    """A compute capability, such as 9.0 of an H100."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Chip:
        """
        >>> Chip.parse("12.1").sm
        121

        Raises ConfigError for anything else than "X.Y".
        """
        found = re.fullmatch(r"([1-9]\d?)\.(\d)", text)
        if not found:
            raise ConfigError(
                f"{text!r} is no compute capability; expected one such as 9.0",
                hint='see what the node\'s GPUs have: nvidia-smi --query-gpu=compute_cap --format=csv; "9.0" is an H100',
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def sm(self) -> int:
        return self.major * 10 + self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True)
class Code:
    """What a piece of GPU code was compiled for. kind: "cubin", "ptx" or "lto" (LTO-IR).  suffix: "", "a" or "f"."""

    kind: str
    sm: int
    suffix: str = ""

    def __str__(self) -> str:
        """As NVIDIA's tools write it.

        >>> str(Code("cubin", 90, "a")), str(Code("ptx", 80)), str(Code("lto", 75))
        ('sm_90a', 'compute_80', 'lto_75')
        """
        return {"cubin": "sm", "ptx": "compute", "lto": "lto"}[self.kind] + f"_{self.sm}{self.suffix}"


def runs(code: Code, chip: Chip) -> bool:
    """Whether `chip` can run this cubin as it is.

    >>> runs(Code("cubin", 80), Chip(8, 9)), runs(Code("cubin", 87), Chip(8, 9)), runs(Code("cubin", 90, "a"), Chip(9, 0))
    (True, False, True)
    """
    if code.kind != "cubin" or code.sm // 10 != chip.major:
        return False
    if code.suffix == "a" or (code.sm in TEGRA) != (chip.sm in TEGRA):
        return code.sm == chip.sm
    return code.sm <= chip.sm


def compiles(code: Code, chip: Chip) -> bool:
    """Whether the driver can compile this PTX, or link this LTO-IR, for `chip`.

    >>> compiles(Code("ptx", 80), Chip(9, 0)), compiles(Code("ptx", 90, "a"), Chip(10, 0))
    (True, False)
    """
    if code.kind == "cubin":
        return False
    if code.suffix == "a":
        return code.sm == chip.sm
    if code.suffix == "f":
        return code.sm <= chip.sm and code.sm // 10 == chip.major
    return code.sm <= chip.sm


def keep(codes: Sequence[Code], chips: Iterable[Chip]) -> list[bool]:
    """Which of one container's pieces stay, so that each of `chips` still finds the best that it could select before.

    The latest cubin that the chip can run, of each suffix; where there is none, the latest PTX that compiles for it. LTO-IR
    is no alternative to a cubin but the input of a linker, so all that a chip can link stays.

    >>> keep([Code("cubin", 80), Code("cubin", 90), Code("cubin", 90, "a"), Code("ptx", 90)], [Chip(9, 0)])
    [False, True, True, False]
    >>> keep([Code("cubin", 80), Code("ptx", 80)], [Chip(9, 0)])
    [False, True]
    """
    kept = [False] * len(codes)
    for chip in chips:
        cubins = [i for i, code in enumerate(codes) if runs(code, chip)]
        best = cubins or [i for i, code in enumerate(codes) if code.kind == "ptx" and compiles(code, chip)]
        for suffix in {codes[i].suffix for i in best}:
            latest = max(codes[i].sm for i in best if codes[i].suffix == suffix)
            for i in best:
                kept[i] |= codes[i].suffix == suffix and codes[i].sm == latest
        for i, code in enumerate(codes):
            kept[i] |= code.kind == "lto" and compiles(code, chip)
    return kept
