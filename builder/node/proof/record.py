"""The build record of a disk, as far as a proof reads it: what is not of this form is told, and nothing is done by it.

A disk may come from anywhere, and a proof runs as root: a path in the record must not lead out of the disk.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from builder.node.targets import TARGETS
from builder.node.volume import RECORD_FORMAT

_RECORD = {"tool": str, "containerd": str, "filesystem": str, "images": list, "weights": dict}
_IMAGE = {
    "reference": str, "digest": str, "manifest": str, "config": str, "platform": str, "user": str, "layers": list,
    "entrypoint": list, "unpacked": list,
}  # fmt: skip


def check(raw: Any) -> None:
    """Raises ValueError, which says what was expected and found, unless `raw` is a build record."""
    if not isinstance(raw, dict) or raw.get("format") != RECORD_FORMAT:
        raise ValueError(f"format {raw.get('format') if isinstance(raw, dict) else raw!r}, expected {RECORD_FORMAT}")
    for name, kind in _RECORD.items():
        _expect(raw, name, kind)
    for name in ("weights", "compiled"):
        _sizes(raw.get(name, {}), name)
    if raw.get("target", "") not in ("", *TARGETS):
        raise ValueError(f"target is {raw['target']!r}, expected one of {', '.join(TARGETS)}")
    for image in raw["images"]:
        _check_image(image)


def _check_image(image: Any) -> None:
    for name, kind in _IMAGE.items():
        _expect(image, name, kind)
    if not all(isinstance(word, str) for word in image["entrypoint"]):
        raise ValueError(f"entrypoint is {image['entrypoint']!r}, expected words")
    for layer in image["layers"]:
        if not (isinstance(layer, list) and len(layer) == 2 and isinstance(layer[0], str)):
            raise ValueError(f"a layer is {layer!r}, expected its digest and its size")
    for layer in image["unpacked"]:
        for name in ("chain", "path", "sha256"):
            _expect(layer, name, str)
        path = PurePosixPath(layer["path"])
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"path is {layer['path']!r}, expected one below the root of the disk")


def _expect(row: Any, name: str, kind: type) -> None:
    if not isinstance(row, dict) or not isinstance(row.get(name), kind):
        raise ValueError(f"{name} is {row.get(name) if isinstance(row, dict) else row!r}, expected a {kind.__name__}")


def _sizes(row: Any, name: str) -> None:
    if not isinstance(row, dict) or not all(isinstance(size, int) for size in row.values()):
        raise ValueError(f"{name} is {row!r}, expected bytes by digest")
