"""builder.lock, beside builder.yaml: what its names meant when they were last resolved.

JSON with one section per thing: {"version": 1, "tool", "model": {source, revision}, "weights": {manifest},
"image": {base, base_digest, digest}}. Commands that resolve something write their section and leave the others.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from builder import __version__
from builder.errors import CapabilityError, ConfigError

VERSION = 1


def read(path: Path) -> dict[str, Any]:
    """The lock; empty sections where the file does not exist. Raises ConfigError if it is damaged or newer."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return {"version": VERSION}
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"{path}: not a lock file: {exc}", hint=f"delete {path.name}; the next command writes it again"
        ) from exc
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        found = raw.get("version") if isinstance(raw, dict) else type(raw).__name__
        raise ConfigError(f"{path}: lock version {found}, this builder reads {VERSION}", hint="use the builder that wrote it")
    return raw


def section(path: Path, name: str) -> dict[str, Any]:
    """One section; empty if it was never written."""
    found = read(path).get(name, {})
    return found if isinstance(found, dict) else {}


def update(path: Path, name: str, values: dict[str, Any]) -> None:
    """Replace one section. Atomic: readers see the old file or the new one. Raises CapabilityError if it cannot be written."""
    lock = read(path) | {"version": VERSION, "tool": __version__, name: values}
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
            part.write(json.dumps(lock, indent=2, sort_keys=True) + "\n")
            part.flush()
            os.fsync(part.fileno())
        Path(part.name).chmod(0o644)
        Path(part.name).replace(path)
    except OSError as exc:
        raise CapabilityError(f"{path}: cannot be written: {exc.strerror}", hint="make its folder writable for you") from exc
