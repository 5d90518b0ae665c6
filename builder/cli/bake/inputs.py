"""What a bake takes: from the command line, or else from builder.yaml. Images that lie elsewhere are brought here first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.node.inputs import CompiledInput, ImageInput, WeightsInput
    from builder.node.registry import Access
    from builder.progress import Progress

COMPILED_BELOW = "compile-cache"  # below weights.store, where `builder cache capture` puts it


@dataclass(frozen=True)
class Asked:
    """images: of the engine, or docker://REF. layouts, compiled: [REF=]PLACE. ca: PEM file for registries."""

    images: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()
    compiled: tuple[str, ...] = ()
    platform: str = ""
    ca: Path | None = None

    def __bool__(self) -> bool:
        """Whether the command line names anything to bake."""
        return bool(self.images or self.layouts or self.weights or self.compiled)


def described(asked: Asked) -> bool:
    """Whether builder.yaml is to say what to bake. Raises ConfigError if there is none in the current folder."""
    if not asked and not Path("builder.yaml").exists():
        raise ConfigError("nothing to bake: no --image, --oci, --weights or --compile-cache, and no builder.yaml here",
                          hint="name an image, --oci PATH or --image REF, or a description with -f")  # fmt: skip
    return not asked


def images(asked: Asked, loaded: Loaded | None, scratch: Path, progress: Progress) -> tuple[ImageInput, ...]:
    """Every image as an OCI layout; those of the engine and of registries lie in `scratch` then."""
    from builder.node.inputs import ImageInput
    from builder.node.layout import host_platform, normalise
    from builder.node.registry import PREFIX, fetch
    from builder.progress import step

    chosen = [ImageInput(Path(path), reference) for reference, path in map(_split, asked.layouts)]
    references = list(asked.images)
    if not asked and loaded and "image" in loaded.spec.bake.contents:
        references.append(f"{loaded.spec.image.repository}:{loaded.spec.image.tag}")
    for reference in references:
        if not reference.startswith(PREFIX):
            normalise(reference)  # a name that the disk cannot hold is told before an export of minutes
    for number, reference in enumerate(references):
        folder = scratch / str(number)
        if reference.startswith(PREFIX):
            with step(progress, f"bake: fetch {reference}"):
                name = fetch(reference.removeprefix(PREFIX), folder, platform=asked.platform or host_platform(),
                             access=_access(asked, loaded))  # fmt: skip
        else:
            from builder.image.engine import export_oci

            with step(progress, f"bake: export {reference}"):
                export_oci(reference, folder)
            name = reference
        chosen.append(ImageInput(folder, name))
    return tuple(chosen)


def weights(asked: Asked, loaded: Loaded | None) -> tuple[WeightsInput, ...]:
    from builder.node.inputs import WeightsInput

    if asked or not loaded or "weights" not in loaded.spec.bake.contents:
        return tuple(WeightsInput(folder=path) for path in asked.weights)
    spec = loaded.spec
    return (WeightsInput(None, loaded.store_url, spec.name, spec.weights.endpoint_url, spec.weights.region),)


def compiled(asked: Asked, loaded: Loaded | None) -> tuple[CompiledInput, ...]:
    """A folder that holds an artifact is one; anything else is a store, with NAME@KEY before it."""
    from builder.node.inputs import CompiledInput

    if asked or not loaded or "compile-cache" not in loaded.spec.bake.contents:
        return tuple(_artifact(name, at) for name, at in map(_split, asked.compiled))
    spec = loaded.spec
    if own := spec.image.compile_cache:
        return (CompiledInput(loaded.path_of(own)),)
    store = f"{loaded.store_url.rstrip('/')}/{COMPILED_BELOW}"
    return (CompiledInput(None, store, spec.name, spec.weights.endpoint_url, spec.weights.region),)


def _artifact(name: str, at: str) -> CompiledInput:
    """Raises ConfigError for a place on this machine that is neither: else it would be told when the images are unpacked."""
    from builder.format.compiled import FINGERPRINT
    from builder.node.inputs import CompiledInput

    place = Path(at)
    if not name and (place / FINGERPRINT).exists():
        return CompiledInput(place)
    if "://" not in at and not (place / "refs").is_dir():
        what = f"neither a captured compile cache (no {FINGERPRINT} in it) nor a store" if place.is_dir() else "no such folder"
        raise ConfigError(f"--compile-cache: {at}: {what}", hint="`builder cache capture --to DIR` makes one")
    return CompiledInput(None, at, name)


def size(text: str | None, default: int) -> int:
    from builder.units import parse_size

    if text is None:
        return default
    try:
        return parse_size(text)
    except ValueError as exc:
        raise ConfigError(f"--size: {exc}") from exc


def _split(text: str) -> tuple[str, str]:
    """`REF=PLACE` or `PLACE` to (reference, place). A path that exists is a path, = or not; so is = in an address's query."""
    reference, sign, place = text.partition("=")
    return (reference, place) if sign and not Path(text).exists() and "://" not in reference else ("", text)


def _access(asked: Asked, loaded: Loaded | None) -> Access:
    """The logins that `docker login` keeps; skopeo reads REGISTRY_AUTH_FILE and Podman's own place by itself."""
    from builder.node.registry import Access

    config = Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser(), "config.json")
    given = loaded.path_of(loaded.spec.image.ca_bundle) if loaded and loaded.spec.image.ca_bundle else None
    known = not os.environ.get("REGISTRY_AUTH_FILE") and config.is_file()
    return Access(config if known else None, asked.ca or given)
