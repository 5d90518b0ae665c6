"""A model in a local folder, or one file of it.

Symbolic links are followed to files inside the folder, and out of a hub cache's `snapshots/<commit>/` into its `blobs/`
(the layout of huggingface_hub). A link that leads elsewhere is refused: a model from elsewhere could otherwise upload any
file that the user can read. A link inside the folder is a file of its own; its chunks are the same, so nothing is stored twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from builder.errors import ConfigError
from builder.models.source import IGNORED, ModelFile, ModelRef, ModelSnapshot, chosen, complete, model_file, unreadable

_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)\Z")


def folder(root: Path, ref: ModelRef) -> ModelSnapshot:
    """All files under `root` that the patterns take. Reads names and sizes only."""
    return complete(ref, root.resolve().name, "", _files(root, ref))


def file(path: Path, ref: ModelRef) -> ModelSnapshot:
    """The model in one file; of a split one (`-00001-of-00003.gguf`), all its parts."""
    paths = [path]
    if match := _PART.match(path.name):
        paths = sorted(p for p in path.parent.iterdir() if _same_split(p.name, match))
    return complete(ref, path.name, "", [model_file(p.name, p) for p in paths])


def _files(root: Path, ref: ModelRef) -> Iterator[ModelFile]:
    real = root.resolve()
    blobs = real.parent.parent / "blobs" if real.parent.name == "snapshots" else None

    def stop(exc: OSError) -> None:
        raise unreadable(Path(exc.filename), exc) from exc

    for at, folders, names in os.walk(root, onerror=stop):
        here = Path(at)
        folders[:] = sorted(d for d in folders if d not in IGNORED)
        for name in folders:
            if (here / name).is_symlink():
                raise ConfigError(f"{here / name}: a link to a folder", hint="put the folder itself there")
        for name in sorted(names):
            location = here / name
            path = location.relative_to(root).as_posix()
            if not chosen(path, ref):
                continue
            if location.is_symlink():
                _refuse_escape(location, real, blobs)
            yield model_file(path, location)


def _refuse_escape(link: Path, root: Path, blobs: Path | None) -> None:
    target = link.resolve()
    if not target.is_relative_to(root) and not (blobs and target.is_relative_to(blobs)):
        raise ConfigError(f"{link}: a link to {target}, outside the model's folder", hint="copy the file there, or exclude it")


def _same_split(name: str, of: re.Match[str]) -> bool:
    match = _PART.match(name)
    return bool(match) and match.group("stem", "count", "suffix") == of.group("stem", "count", "suffix")  # type: ignore[union-attr]
