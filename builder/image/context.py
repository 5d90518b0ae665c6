"""The build folder: everything a build reads, in one place, so that any BuildKit can build it again.

    Dockerfile .dockerignore
    builder/        the shipped set
    requirements/   LAYER.txt: exact pins with hashes, of requirements.lock
    steps/          what the RUN lines call
    wheelhouse/     LAYER/: the wheels of the lock that the user gives (hard links where possible); mounted, in no layer
    slim/           builder/slim, where GPU code for other chips goes; mounted, in no layer
    proof/          requirements.txt and wheelhouse/ of the tool that proves it
    compile-cache/  a captured compile cache, where image.compile_cache names one

Modes are fixed, times follow the content and names are sorted, so the same description makes the same folder, and the
same cache keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from builder import resources
from builder.config.spec import Spec
from builder.errors import ConfigError
from builder.format import compiled
from builder.image import pruning, trim
from builder.image.dockerfile import EPOCH, dockerfile
from builder.image.lock import Lock, LockLayer

SHIPPED = ("__init__.py", "errors.py", "format", "transfer", "runtime")
SLIM = ("__init__.py", "errors.py", "slim")
"""What a build step imports: Python 3.10 and its standard library, and nothing else. Apart from SHIPPED, so that another
runtime does not make every layer of wheels anew."""
BAKED = "compile-cache"


@dataclass(frozen=True, slots=True)
class Context:
    """A build folder. digest: hex sha256 over names and contents, the wheels' names only (their hashes are pip's to check)."""

    folder: Path
    digest: str
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "digest": self.digest, "files": list(self.files)}


@dataclass(frozen=True, slots=True)
class Baked:
    """A captured compile cache that was checked. key: of its fingerprint."""

    folder: Path
    key: str


def write(
    folder: Path,
    spec: Spec,
    lock: Lock,
    *,
    manifest: str = "",
    wheelhouse: Path | None = None,
    baked: Baked | None = None,
    link: bool = True,
) -> Context:
    """Fill the empty or missing `folder`. wheelhouse: a folder of wheels.  baked: a compile cache.  link: see dockerfile.

    Raises ConfigError for a wheelhouse that is not a folder of wheels, or that lacks a wheel where no index may be asked.
    """
    text = dockerfile(spec, lock, manifest=manifest, cache_key=baked.key if baked else "", link=link)
    _empty(folder)
    _put(folder / "Dockerfile", text)
    _put(folder / ".dockerignore", "**/__pycache__\n**/*.pyc\n")
    for layer in lock.layers:
        _put(folder / "requirements" / f"{layer.name}.txt", layer.requirements())
    for source in sorted((resources.folder("templates") / "image" / "steps").iterdir()):
        if source.is_file():
            _put(folder / "steps" / source.name, source.read_text())
    _put(folder / "steps" / "trim.json", json.dumps(trim.settings(EPOCH), indent=1) + "\n")
    _copy(SHIPPED, folder / "builder")
    held = _offered(wheelhouse) if wheelhouse else {}
    at = str(wheelhouse or "none given") if not spec.image.index else ""
    for layer in lock.layers:
        _wheels(folder / "wheelhouse" / layer.name, layer, held, alone=at)
    if pruning.changes(spec.image):
        _slim(folder, spec, lock, held, alone=at)
    if baked:
        _compiled(folder / BAKED, baked.folder)
    files = _settle(folder)
    return Context(folder, _digest(folder, files), tuple(files))


def _compiled(target: Path, source: Path) -> None:
    target.mkdir()
    for name in compiled.ALL:
        shutil.copyfile(source / name, target / name)


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty", hint="name a new folder, or empty this one")


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _slim(folder: Path, spec: Spec, lock: Lock, held: Mapping[tuple[str, str], list[Path]], *, alone: str) -> None:
    """What the prune step needs beside the others."""
    _put(folder / "steps" / "prune.json", json.dumps(pruning.settings(spec.image), indent=1) + "\n")
    _copy(SLIM, folder / "slim" / "builder")
    for tool in lock.tools:
        _put(folder / "proof" / "requirements.txt", tool.requirements())
        _wheels(folder / "proof" / "wheelhouse", tool, held, alone=alone)


def _copy(names: Iterable[str], target: Path) -> None:
    for name in names:
        source = resources.PACKAGE / name
        files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
        for file in files:
            _put(target / file.relative_to(resources.PACKAGE), file.read_text())


def _wheels(target: Path, layer: LockLayer, held: Mapping[tuple[str, str], list[Path]], *, alone: str) -> None:
    """The wheels that the lock names for `layer`; the others are no business of this build.

    alone: the wheelhouse, as an error names it, where nothing else may be asked.
    """
    target.mkdir(parents=True)
    for wheel in layer.wheels:
        found = held.get((wheel.name, wheel.version), ())
        if alone and not found:
            raise ConfigError(
                f"image.wheelhouse: {alone} lacks {wheel.pin}, and image.index is false",
                hint="fill it: pip download --no-deps --require-hashes -d DIR -r requirements.lock",
            )
        for path in found:
            _link(path, target / path.name)


def _offered(wheelhouse: Path) -> dict[tuple[str, str], list[Path]]:
    """(name, version) to the wheels of the folder."""
    wheels = sorted(wheelhouse.glob("*.whl")) if wheelhouse.is_dir() else []
    if not wheels:
        raise ConfigError(
            f"image.wheelhouse: {wheelhouse} holds no wheels", hint="fill it: pip download --only-binary :all: -d DIR PACKAGE"
        )
    found: dict[tuple[str, str], list[Path]] = {}
    for path in wheels:
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename as exc:
            raise ConfigError(f"image.wheelhouse: {path}: not a wheel's name", hint="take it out of the folder") from exc
        found.setdefault((str(name), str(version)), []).append(path)
    return found


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or a file system without links
        shutil.copyfile(source, target)


def _settle(folder: Path) -> list[str]:
    """Fix modes and times; hard-linked wheels are the user's files and stay as they are."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            names.append(str(path.relative_to(folder)))
        if path.is_file() and path.suffix == ".whl":
            continue
        path.chmod(0o755 if path.is_dir() or path.parent.name == "steps" else 0o644)
        # By content: buildx sends again only what differs in size or time from the last folder that it saw.
        moment = EPOCH + (int.from_bytes(_sha256(path)[:3], "big") if path.is_file() else 0)
        os.utime(path, (moment, moment))
    return names


def _digest(folder: Path, files: list[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        if name == f"{BAKED}/{compiled.TAR}":  # perhaps gigabytes; the list beside it holds the digest of every file in it
            digest.update(f"{name}\0".encode())
            continue
        content = b"" if name.endswith(".whl") else (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
