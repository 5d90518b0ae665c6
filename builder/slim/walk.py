"""The libraries in files and folders: regular files that begin as ELF does, each once, with all its names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import CapabilityError, ConfigError
from builder.slim import swap

LEAST_BYTES = 4096  # less than the headers of any shared object with GPU code


@dataclass(frozen=True)
class Found:
    """One inode. real: a name of it, absolute and without links.  shown: the same as the command line leads to it.

    links: its other names.  outside: how many names it has beyond these.  named: on the command line itself.
    """

    real: Path
    shown: str
    size: int
    links: tuple[Path, ...] = ()
    outside: int = 0
    named: bool = False


def find(paths: Sequence[Path], *, clean: bool) -> list[Found]:
    """Every library in `paths`, by path. clean: take away what a killed run has left there.

    A file that is named is taken whatever it holds; in folders, no link is followed and what is no ELF file is passed over.
    Raises ConfigError for a path that is not there, or that is neither a file nor a folder.
    """
    roots = [_root(path) for path in paths]
    if clean:
        remove_leftovers(paths)
    names: dict[tuple[int, int], dict[Path, str]] = {}
    figures: dict[tuple[int, int], os.stat_result] = {}
    named = set()
    for real, shown in roots:
        for name, entry in _files(real):
            key = (entry.st_dev, entry.st_ino)
            figures[key] = entry
            names.setdefault(key, {})[name] = shown + str(name)[len(str(real)) :]
            if name == real:
                named.add(key)
    return [_found(figures[key], same, key in named) for key, same in sorted(names.items(), key=lambda one: min(one[1]))]


def remove_leftovers(paths: Sequence[Path]) -> None:
    """What killed processes have left beside the libraries in `paths`."""
    swap.sweep(sorted({left for path in paths for left in _leftovers(_root(path)[0])}))


def _found(entry: os.stat_result, names: dict[Path, str], named: bool) -> Found:
    real, *links = sorted(names)
    return Found(real, names[real], entry.st_size, tuple(links), entry.st_nlink - len(names), named)


def _root(path: Path) -> tuple[Path, str]:
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of links, before Python 3.13
        said = getattr(exc, "strerror", None) or "a loop of symbolic links"
        raise ConfigError(f"{path}: {said}", hint="give libraries, or folders that hold some") from exc
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: neither a file nor a folder", hint="give libraries, or folders that hold some")
    return real, str(path)


def _files(real: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if real.is_file():
        yield real, real.lstat()
        return
    for folder, _, names in os.walk(real, onerror=_unreadable):
        for name in names:
            path = Path(folder, name)
            try:
                entry = path.lstat()
            except FileNotFoundError:  # it went while the folder was read
                continue
            plain = stat.S_ISREG(entry.st_mode) and entry.st_size >= LEAST_BYTES
            if plain and not swap.LEFTOVER.fullmatch(name) and _elf(path):
                yield path, entry


def _elf(path: Path) -> bool:
    """What cannot be read is taken for one: the report then says so."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return True


def _unreadable(exc: OSError) -> None:
    raise CapabilityError(
        f"{exc.filename}: cannot be listed: {exc.strerror}", hint="run it as somebody who may read it"
    ) from exc


def _leftovers(real: Path) -> Iterator[Path]:
    if real.is_file():
        yield from (path for path in real.parent.iterdir() if _left(path) == real.name)
        return
    for folder, _, names in os.walk(real, onerror=_unreadable):
        yield from (path for name in names if _left(path := Path(folder, name)))


def _left(path: Path) -> str:
    """The name of the file that `path` is a leftover of; "" if it is none."""
    found = swap.LEFTOVER.fullmatch(path.name)
    try:
        return found["name"] if found and stat.S_ISREG(path.lstat().st_mode) else ""
    except FileNotFoundError:  # of another run, which is done with it
        return ""
