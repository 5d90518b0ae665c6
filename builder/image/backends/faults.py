"""What the tools inside a build print, as an error with its exit code and one next step. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from builder.errors import BuilderError, CapabilityError, IntegrityError, RemoteError

FULL = re.compile(r"no space left on device|\[Errno 28\]|disk quota exceeded", re.IGNORECASE)
# The first that matches wins, so causes stand before their consequences: pip says "No matching distribution" after each
# of the network's faults too. Texts: pip 23.0 (Debian 12), apt 2.6, BuildKit 0.13, buildah 1.28.
CAUSES: Sequence[tuple[str, type[BuilderError], str]] = (
    (
        r"DO NOT MATCH THE HASHES|Hash Sum mismatch",
        IntegrityError,
        "a package is not what the lock or the index says: find out why; only then `builder image lock`",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|certificate verification failed",
        RemoteError,
        "name the certificate authority of your network in image.ca_bundle",
    ),
    (
        r"401 Error|401 Client Error|401 +Unauthorized|403 +Forbidden|403 Client Error|User for [^\n]*: *$",
        RemoteError,
        "the package index or mirror refuses the login: set its user name and password",
    ),
    (
        r"ModuleNotFoundError: No module named '(?P<name>[^']+)'",
        BuilderError,
        "the image's Python has no module {name}: take a base with the whole standard library, or python:*-slim",
    ),
    (
        r"Temporary failure (in name )?resolv|Could not resolve|Name or service not known|Network is unreachable"
        r"|Connection timed out|ConnectTimeoutError",
        RemoteError,
        "the build step has no network: try image.build_network: host, or image.wheelhouse with a base that has Python",
    ),
    (
        r"Connection refused|NewConnectionError|Failed to establish a new connection|Read timed out",
        RemoteError,
        "the package index does not answer: see its address in pip's settings (pip config list), or fill image.wheelhouse",
    ),
    (
        r"No matching distribution|Could not find a version",
        BuilderError,
        "the wheel is on no index that pip asks here: fill image.wheelhouse, or set pip's index (pip config)",
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


def fault(what: str, said: str, *, where: dict[str, object] | None = None, full: str = "") -> BuilderError:
    """The error for a build that ended with `said`. full: places that may be full, for the message."""
    if FULL.search(said):
        return CapabilityError(
            f"{what}: no space left on {full or 'a disk'}{said}",
            hint="free some, or name a larger disk in TMPDIR (archives) or the engine's settings (images)",
            where=where,
        )
    for pattern, kind, hint in CAUSES:
        match = re.search(pattern, said, re.MULTILINE)
        if match:
            return kind(f"{what}{said}", hint=hint.format(**match.groupdict()), where=where)
    return BuilderError(f"{what}{said}", where=where)
