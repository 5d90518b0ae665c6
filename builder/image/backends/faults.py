"""What a build prints when it fails, as an error with its exit code and one next step. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from builder.errors import BuilderError, CapabilityError, RemoteError
from builder.image.faults import classify

FULL = re.compile(r"no space left on device|\[Errno 28\]|disk quota exceeded", re.IGNORECASE)
# What is not pip's or apt's own failure (see image/faults.py). Texts: Python 3.11, BuildKit 0.13, buildah 1.28.
CAUSES: Sequence[tuple[str, type[BuilderError], str]] = (
    (
        r"ModuleNotFoundError: No module named '(?P<name>[^']+)'",
        BuilderError,
        "the image's Python has no module {name}: take a base with the whole standard library, or python:*-slim",
    ),
    (
        r"exec format error",
        CapabilityError,
        "programs of another processor do not run here: apt-get install qemu-user-static binfmt-support",
    ),
    (
        r"failed to configure (local|registry) cache (im|ex)porter|error writing (layer|manifest) blob|cache export",
        RemoteError,
        "see that the cache's registry answers and lets you in (docker login)",
    ),
)


def fault(what: str, said: str, *, step: str = "", full: str = "") -> BuilderError:
    """The error for a build that ended with `said`. step: the one that failed.  full: places that may be full."""
    where = {"step": step} if step else None
    if FULL.search(said):
        return CapabilityError(
            f"{what}: no space left on {full or 'a disk'}{said}",
            hint="free some, or name a larger disk in TMPDIR (archives) or the engine's settings (images)",
            where=where,
        )
    known = classify(said, step=step) if step else None  # outside a step it is the builder that talks
    if known is not None:
        return known
    for pattern, kind, hint in CAUSES:
        match = re.search(pattern, said, re.MULTILINE)
        if match:
            return kind(f"{what}{said}", hint=hint.format(**match.groupdict()), where=where)
    return BuilderError(f"{what}{said}", where=where)
