"""What is asked for (ModelRef) and what that turned out to be (ModelSnapshot)."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError, ConfigError, IntegrityError, printable
from builder.format.manifest import safe_path

IGNORED = (".git", ".cache", ".builder")  # version control, the hub's download state, our own markers


@dataclass(frozen=True)
class ModelRef:
    """source: a folder, a file, or hf://organisation/model.  revision: of a hub model; None means its main branch.

    include, exclude: glob patterns over the path inside the model (`*` also matches `/`); exclude wins.
    token_env: name of the environment variable with the hub's token; the token itself is never part of a value.
    """

    source: str
    revision: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    token_env: str = ""


@dataclass(frozen=True)
class ModelFile:
    """One file. path: inside the model, with "/".  location: where its bytes are.

    size, mtime_ns, inode: when the snapshot was taken; `changed` compares.  sha256: what its origin says it is, or "".
    """

    path: str
    location: Path
    size: int
    mtime_ns: int
    inode: int
    sha256: str = ""

    def changed(self, found: os.stat_result) -> str:
        """What differs between the snapshot and `found`, or ""."""
        if found.st_size != self.size:
            return f"it had {self.size} bytes, now {found.st_size}"
        if found.st_mtime_ns != self.mtime_ns or found.st_ino != self.inode:
            return "it was written to"
        return ""


@dataclass(frozen=True)
class ModelSnapshot:
    """A model at one moment. source: hf://... or the bare name of a folder or file, so that equal models have equal
    manifests wherever they lay.  revision: the hub's commit, or "".  files: by path.
    """

    source: str
    revision: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "revision": self.revision,
            "size": self.size,
            "files": [{"path": f.path, "size": f.size} for f in self.files],
        }


def chosen(path: str, ref: ModelRef) -> bool:
    """Whether the patterns of `ref` take `path`."""
    return _matches(path, ref.include) and not _matches(path, ref.exclude)


def model_file(path: str, location: Path, *, sha256: str = "") -> ModelFile:
    """The file at `location` as part of a model. Raises for what is not a readable regular file or has an unsafe name."""
    try:
        safe_path(path)
        path.encode()
    except (ValueError, UnicodeEncodeError) as exc:
        raise ConfigError(
            f"{printable(str(location))}: cannot be part of a model: {exc}", hint="rename it, or exclude it"
        ) from exc
    try:
        found = location.stat()
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{printable(str(location))}: a link to nothing", hint="download the model again", where={"file": path}
        ) from exc
    except OSError as exc:
        raise unreadable(location, exc) from exc
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{printable(str(location))}: not a regular file", hint="exclude it")
    return ModelFile(path, location, found.st_size, found.st_mtime_ns, found.st_ino, sha256)


def unreadable(location: Path, exc: OSError) -> CapabilityError:
    return CapabilityError(
        f"{printable(str(location))}: cannot be read: {exc.strerror}",
        hint="check its permissions",
        where={"file": str(location)},
    )


def complete(ref: ModelRef, source: str, revision: str, files: Iterable[ModelFile]) -> ModelSnapshot:
    """The snapshot; an empty one is refused."""
    ordered = tuple(sorted(files, key=lambda f: f.path))
    if not ordered:
        patterns = f"include {list(ref.include)}, exclude {list(ref.exclude)}"
        raise ConfigError(f"{ref.source}: no file to take ({patterns})", hint="check the path and the patterns")
    return ModelSnapshot(source, revision, ordered)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, p + "*" if p.endswith("/") else p) for p in patterns)
