"""The build folder: everything a build reads, in one place, so that any BuildKit can build it again.

    Dockerfile .dockerignore
    builder/        the shipped set
    requirements/   runtime.txt engine.txt: exact pins, or the lock with hashes
    steps/          what the RUN lines call
    wheelhouse/     wheels given by the user (hard links where possible); mounted into RUN lines, in no layer

Modes and times are fixed and names sorted, so the same description makes the same folder, and the same cache keys.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import resources
from builder.config.spec import Spec
from builder.errors import ConfigError
from builder.image.dockerfile import EPOCH, RUNTIME_PINS, dockerfile, requirements

SHIPPED = ("__init__.py", "errors.py", "format", "transfer", "runtime")
LOCK = "requirements.lock"


@dataclass(frozen=True, slots=True)
class Context:
    """A build folder. digest: hex sha256 over names and contents, the wheels' names only (their hashes are pip's to check)."""

    folder: Path
    digest: str
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "digest": self.digest, "files": list(self.files)}


def write(folder: Path, spec: Spec, *, manifest: str = "", wheelhouse: Path | None = None, lock: Path | None = None) -> Context:
    """Fill the empty or missing `folder`. wheelhouse: a folder of wheels; lock: pip requirements with hashes, if it exists.

    Raises ConfigError for a wheelhouse that is not a folder of wheels, and for a lock of another engine version.
    """
    text = dockerfile(spec, manifest=manifest)
    pins = requirements(spec)
    if lock is not None and lock.is_file():
        pins = _locked(lock, pins["engine.txt"])
    _empty(folder)
    _put(folder / "Dockerfile", text)
    _put(folder / ".dockerignore", "**/__pycache__\n**/*.pyc\n")
    for name, content in pins.items():
        _put(folder / "requirements" / name, content)
    for source in sorted((resources.folder("templates") / "image" / "steps").iterdir()):
        if source.is_file():
            _put(folder / "steps" / source.name, source.read_text())
    _shipped(folder / "builder")
    _wheels(folder / "wheelhouse", wheelhouse)
    files = _settle(folder)
    return Context(folder, _digest(folder, files), tuple(files))


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty", hint="name a new folder, or empty this one")


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _shipped(target: Path) -> None:
    for name in SHIPPED:
        source = resources.PACKAGE / name
        files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
        for file in files:
            _put(target / file.relative_to(resources.PACKAGE), file.read_text())


def _wheels(target: Path, wheelhouse: Path | None) -> None:
    target.mkdir()
    if wheelhouse is None:
        return
    wheels = sorted(wheelhouse.glob("*.whl")) if wheelhouse.is_dir() else []
    if not wheels:
        raise ConfigError(
            f"image.wheelhouse: {wheelhouse} holds no wheels", hint="fill it: pip download --only-binary :all: -d DIR PACKAGE"
        )
    for wheel in wheels:
        try:
            os.link(wheel.resolve(), target / wheel.name)
        except OSError:  # another file system, or a file system without links
            shutil.copyfile(wheel, target / wheel.name)


def _locked(lock: Path, wanted: str) -> dict[str, str]:
    """The lock's entries, the runtime's apart. Each exact pin in `wanted` must be what the lock holds."""
    entries = _entries(lock.read_text())
    for pin in wanted.splitlines():
        name, version = re.split("={2,3}", pin)
        found = entries.get(_normal(name), "")
        if f"=={version} " not in found:
            at = found.split(" ")[0] or "nothing"
            raise ConfigError(f"{lock}: holds {at} where builder.yaml asks for {pin}", hint="run `builder image lock` again")
    runtime = {_normal(pin.partition("==")[0]) for pin in RUNTIME_PINS}
    return {
        "runtime.txt": "".join(f"{line}\n" for name, line in entries.items() if name in runtime),
        "engine.txt": "".join(f"{line}\n" for name, line in entries.items() if name not in runtime),
    }


def _entries(text: str) -> dict[str, str]:
    """Normalised name to its one-line requirement with hashes."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return {_normal(re.split(r"==", line)[0]): re.sub(r"\s+", " ", line) for line in lines}


def _normal(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503), extras dropped."""
    return re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()


def _settle(folder: Path) -> list[str]:
    """Fix modes and times; hard-linked wheels are the user's files and stay as they are."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            names.append(str(path.relative_to(folder)))
        if path.is_file() and path.suffix == ".whl":
            continue
        path.chmod(0o755 if path.is_dir() or path.parent.name == "steps" else 0o644)
        os.utime(path, (EPOCH, EPOCH))
    return names


def _digest(folder: Path, files: list[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        content = b"" if name.endswith(".whl") else (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
