"""Sizes and durations as people write them: "16MiB", "60s". Binary (KiB) and decimal (kB) prefixes are different."""

from __future__ import annotations

import re

_SIZE = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TIME = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes.

    >>> parse_size("16MiB"), parse_size("1.5 GB")
    (16777216, 1500000000)
    """
    return round(_parse(text, _SIZE, "a size such as 16MiB"))


def parse_seconds(text: str) -> float:
    """Seconds.

    >>> parse_seconds("90s"), parse_seconds("2min")
    (90.0, 120.0)
    """
    return _parse(text, _TIME, "a duration such as 60s")


def format_size(size: float) -> str:
    """Binary units, three significant digits.

    >>> format_size(16 << 20), format_size(98_362_432), format_size(812)
    ('16.0 MiB', '93.8 MiB', '812 B')
    """
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if abs(size) < 1000 or unit == "TiB":
            break
    return f"{size:.0f} {unit}" if size >= 100 else f"{size:.1f} {unit}" if size >= 10 else f"{size:.2f} {unit}"


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(0.0042), format_seconds(1.5), format_seconds(75), format_seconds(86400)
    ('4 ms', '1.5 s', '1 min 15 s', '24 h 0 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s"


def format_count(count: int) -> str:
    """A number of parameters, as model names write it.

    >>> format_count(8_030_000_000), format_count(135_000_000), format_count(900)
    ('8.03B', '135M', '900')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e3 else str(count)


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "fault"), count(2, "fault")
    ('1 fault', '2 faults')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not match or match[2] not in units:
        raise ValueError(f"{text!r} is not {what}; units: {', '.join(units)}")
    return float(match[1]) * units[match[2]]
