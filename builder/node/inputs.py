"""What a bake is asked to put on a volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image. path: an OCI layout, folder or .tar. reference: its name, needed where the layout has several or none."""

    path: Path
    reference: str = ""


@dataclass(frozen=True, slots=True)
class WeightsInput:
    """Weights: a restored folder, or a store (folder path or URL) and a reference in it, "" for its only model."""

    folder: Path | None = None
    store: str = ""
    reference: str = ""
    endpoint_url: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True)
class CompiledInput(WeightsInput):
    """A captured compile cache: the folder of its artifact, or a store and NAME@KEY in it; NAME is the one captured last."""
