"""Wheels made by hand: small, and all that an installer and a resolver look at."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, *, requires: tuple[str, ...] = (), tag: str = "py3-none-any", pad: int = 0
) -> Path:
    """A wheel that a resolver takes: METADATA, WHEEL, RECORD, and `pad` bytes."""
    stem = f"{name.replace('-', '_')}-{version}"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        f"{name.replace('-', '_')}/data.bin": bytes(pad),
    }
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        rows = []
        for inner, body in files.items():
            archive.writestr(inner, body)
            digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
            rows.append(f"{inner},sha256={digest},{len(body)}\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "".join(rows))
    return path
