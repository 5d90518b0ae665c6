"""A built image, and what the back end that made it can do: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do on this machine.

    name: buildx, docker or buildah. version: of the program that builds.
    archives: builds come out as an OCI archive with the digests that a registry will show, and reach the engine only then.
    zstd: layers are zstd; otherwise as the engine keeps them (gzip).
    unreproducible: why two builds of the same folder differ; "" where they have the same digest.
    copy_link: COPY --link is understood. healthcheck: HEALTHCHECK is kept.
    cache: the kinds of build cache that can be brought in and sent out: "local" (a folder), "registry".
    platforms: what RUN lines can run here, the machine's own first. multi_platform: several in one image.
    """

    name: str
    version: str
    archives: bool = False
    zstd: bool = False
    unreproducible: str = ""
    copy_link: bool = False
    healthcheck: bool = True
    cache: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    multi_platform: bool = False
    push: bool = True

    @property
    def reproducible(self) -> bool:
        return not self.unreproducible

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reproducible": self.reproducible}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image that a back end made.

    reference: repository:tag that it is to have. id: how the back end knows it without a name. digest: of its manifest,
    or of its index where it is for several platforms; empty where the engine keeps none.
    size: compressed bytes of all layers where there is a manifest, else unpacked; layers: their digests, base first; both
    of the machine's own platform where there are several. platforms: each one's manifest digest, if there are several.
    base_digest: of the parent image. backend: what built it. pushed: the digest that the registry shows, "" if not pushed.
    unchanged: it was there already, made of the same inputs.
    """

    reference: str
    digest: str
    size: int
    layers: tuple[str, ...]
    id: str = ""
    platforms: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    base_digest: str = ""
    backend: Capabilities | None = None
    pushed: str = ""
    seconds: float = 0.0
    unchanged: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "digest": self.digest,
            "size": self.size,
            "layers": list(self.layers),
            "platforms": dict(self.platforms),
            "base": self.base,
            "base_digest": self.base_digest,
            "backend": self.backend.to_json() if self.backend else None,
            "reproducible": self.backend.reproducible if self.backend else None,
            "pushed": self.pushed,
            "unchanged": self.unchanged,
            "seconds": round(self.seconds, 2),
        }


def full_name(reference: str) -> str:
    """The reference with its registry: the first part is one if it has a dot or a port, or is localhost.

    >>> full_name("llm/tiny:1"), full_name("127.0.0.1:5000/tiny"), full_name("debian:bookworm-slim")
    ('docker.io/llm/tiny:1', '127.0.0.1:5000/tiny', 'docker.io/library/debian:bookworm-slim')
    """
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"
