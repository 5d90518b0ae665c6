"""templates/, packer/ and images/, in an installed wheel (builder/data/...) or in a checkout (beside the package)."""

from __future__ import annotations

from pathlib import Path

from builder.errors import CapabilityError

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `name` ("templates", "packer" or "images")."""
    for root in (PACKAGE / "data", PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise CapabilityError(f"{name}/ is missing from this installation", hint="install coldstart-builder again")
