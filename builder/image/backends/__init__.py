"""Who builds images here: buildx, the engine's own BuildKit, or buildah; the first that answers. Nobody has to choose."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError, ConfigError
from builder.image.backends import buildah, buildx, docker
from builder.image.backends.base import Backend, Options, is_folder
from builder.image.built import BuiltImage, Capabilities
from builder.progress import NoProgress, Progress

PROBES: dict[str, Callable[[], Backend]] = {"buildx": buildx.probe, "docker": docker.probe, "buildah": buildah.probe}
"""In the order of preference: by what each of them can do."""
BINFMT = "apt-get install qemu-user-static binfmt-support, or docker run --privileged --rm tonistiigi/binfmt --install all"


@dataclass(frozen=True, slots=True)
class Probe:
    """One back end, asked. backend: None where it cannot build here; why: the reason, hint: one next step."""

    name: str
    backend: Backend | None
    why: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        can = self.backend.capabilities.to_json() if self.backend else None
        return {"name": self.name, "capabilities": can, "why": self.why, "hint": self.hint}


def probe(*, first: bool = False) -> tuple[Probe, ...]:
    """Every back end in the order of preference; with `first`, none after the first that answers."""
    found = []
    for name, ask in PROBES.items():
        try:
            found.append(Probe(name, ask()))
        except CapabilityError as exc:
            found.append(Probe(name, None, exc.message, exc.hint))
        if first and found[-1].backend:
            break
    return tuple(found)


def find() -> Backend:
    """The back end that builds here. Raises CapabilityError (exit 4) with every reason if there is none."""
    found = probe(first=True)
    for one in found:
        if one.backend:
            return one.backend
    reasons = "".join(f"\n  {why}" for why in dict.fromkeys(one.why for one in found))
    raise CapabilityError(f"nothing here can build an image{reasons}", hint=docker.HINT)


def build(
    backend: Backend,
    folder: Path,
    *,
    reference: str,
    base: str,
    archive: Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> BuiltImage:
    """Build `folder` into the new file `archive`; nothing has the name `reference` yet, see `Backend.tag`.

    Raises CapabilityError for an option that this back end cannot fulfil and without a base image, ConfigError for another
    base than the pinned one, and what the failing step's output means, with its last lines.
    """
    options, progress = options or Options(), progress or NoProgress()
    require(backend.capabilities, options)
    parent = checked_base(backend, base, options.pinned_base)
    started = time.monotonic()
    built = backend.build(folder, archive, dataclasses.replace(options, base=(base, parent)), progress)
    return dataclasses.replace(
        built,
        reference=reference,
        base=base,
        base_digest=parent,
        backend=backend.capabilities,
        seconds=time.monotonic() - started,
    )


def checked_base(backend: Backend, base: str, pinned: str) -> str:
    """The digest of the base image. Raises ConfigError if it is another one than the pinned."""
    parent = backend.base_digest(base)
    if pinned and parent != pinned:
        raise ConfigError(
            f"base image {base} is {parent}; builder.lock pins {pinned}",
            hint="pull the pinned one, or accept the new one with `builder build --update-base`",
        )
    return parent


def require(can: Capabilities, options: Options) -> None:
    """Raises CapabilityError that names what `options` asks and this back end cannot."""
    for place in (*options.cache_from, *filter(None, [options.cache_to])):
        kind = "local" if is_folder(place) else "registry"
        if kind not in can.cache:
            able = " and ".join(can.cache) or "no"
            raise CapabilityError(
                f"{can.name} {can.version} has {able} build cache of its own to share; {place} is a {kind} one",
                hint="buildx with the containerd image store can do both",
            )
    if len(options.platforms) > 1 and not can.multi_platform:
        raise CapabilityError(
            f"{can.name} {can.version} builds for one platform at a time; image.platforms names {', '.join(options.platforms)}",
            hint="buildx with the containerd image store builds for several",
        )
    missing = [name for name in options.platforms if can.platforms and name not in can.platforms]
    if missing:
        raise CapabilityError(
            f"this machine runs {', '.join(can.platforms)}; image.platforms asks for {', '.join(missing)} (no binfmt emulator)",
            hint=BINFMT,
        )
