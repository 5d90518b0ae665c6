"""An image that the engine has already, made of the same inputs by the same back end: it is not built again.

BuildKit finds every step in its cache too, but then writes the archive anew, with the times of all files in it, and the scan
reads every byte of it: seconds for a small image, minutes for one of 3 GB. What was built is noted under a key of all that
went in; the engine must still have exactly that image under its name. Packages of the system are as old as the build, as
with every build cache; `--no-cache` builds anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from builder.image.backends.base import Backend
from builder.image.built import BuiltImage

_KEPT = ("reference", "digest", "size", "layers", "id", "base", "base_digest")


def key(context: str, reference: str, base_digest: str, backend: Backend) -> str:
    """context: digest of the build folder, which holds the Dockerfile, the lock, the steps and the shipped set."""
    can = backend.capabilities
    parts = (context, reference, base_digest, can.name, can.version)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def remember(memory: Path | None, name: str, built: BuiltImage) -> None:
    """Note what was built, if it can be written. memory: a folder of this user's, or None. name: from `key`."""
    if memory is None or built.platforms:
        return  # the engine tells the digest of one platform alone
    part = memory / f".{name}.partial"
    with contextlib.suppress(OSError):
        memory.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({field: getattr(built, field) for field in _KEPT}))
        part.replace(memory / f"{name}.json")


def recall(memory: Path | None, name: str, backend: Backend, limit: int | None = None) -> BuiltImage | None:
    """The image noted under `name`, if the engine has it under its reference, and it is the same one.

    limit: bytes that it may have; a larger one is built again, so that the budget says what is too large.
    """
    if memory is None:
        return None
    try:
        noted: dict[str, Any] = json.loads((memory / f"{name}.json").read_text())
        built = BuiltImage(**noted | {"layers": tuple(noted["layers"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    here = backend.inspect(built.reference)
    if here is None or here.id != built.id or (limit is not None and built.size > limit):
        return None
    return dataclasses.replace(built, backend=backend.capabilities, unchanged=True)
