"""What a disk holds, as far as its record says: lint compares the files with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import ConfigError

RECORD = ".json"  # written beside the disk by `bake disk`


@dataclass(frozen=True, slots=True)
class Baked:
    """An image on the disk.  repository: with its registry.  architecture: as Kubernetes says it, "" where it is not known."""

    repository: str
    tag: str
    digests: frozenset[str]
    architecture: str = ""

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Disk:
    """size_bytes: 0 where it is not known.  used: share of the file system that is full from the start, 0 to 1, or None."""

    size_bytes: int = 0
    images: tuple[Baked, ...] = ()
    used: float | None = None
    target: str = ""

    @property
    def architectures(self) -> frozenset[str]:
        return frozenset(image.architecture for image in self.images if image.architecture)

    def repository(self, name: str) -> list[Baked]:
        return [image for image in self.images if image.repository == name]


def open_disk(path: Path) -> Disk:
    """The disk at `path` with its record PATH.json if that lies beside it; or the record itself, where the disk is elsewhere.

    Raises ConfigError for a path that is not there and a record that is none.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == RECORD:
        return _from_record(path, 0)
    record = path.with_name(path.name + RECORD)
    size = path.stat().st_size
    return _from_record(record, size) if record.is_file() else Disk(size)


def split(reference: str) -> tuple[str, str, str]:
    """repository with its registry, tag and digest of an image's name; "" for what it does not say.

    >>> split("vllm:v1@sha256:aa"), split("registry.example.com:5000/a/b")
    (('docker.io/library/vllm', 'v1', 'sha256:aa'), ('registry.example.com:5000/a/b', '', ''))
    """
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    repository = f"{head}{slash}{last}".removeprefix("index.docker.io/")
    first, slash, _ = repository.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return repository, tag, digest
    return f"docker.io/{'' if slash else 'library/'}{repository}", tag, digest


def _from_record(path: Path, size: int) -> Disk:
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as exc:
        raise ConfigError(f"{path}: cannot be read as the record of a disk: {exc}", hint="bake again, or move it away") from exc
    volume = raw.get("volume") if isinstance(raw, dict) else None
    if not isinstance(volume, dict):
        raise ConfigError(f"{path}: not the record of a disk: no `volume` in it", hint="bake again, or move it away")
    images = volume.get("images")
    found = [_baked(one, volume) for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    used, recorded = volume.get("used"), volume.get("size")
    return Disk(
        size or (recorded if isinstance(recorded, int) else 0),
        tuple(image for image in found if image.repository),
        float(used) if isinstance(used, (int, float)) else None,
        str(volume.get("target") or ""),
    )


def _baked(image: dict[str, Any], volume: dict[str, Any]) -> Baked:
    repository, tag, _ = split(str(image.get("reference") or ""))
    digest, platform = image.get("digest"), str(image.get("platform") or volume.get("platform") or "")
    architecture = platform.split("/")[1] if "/" in platform else ""
    return Baked(repository if image.get("reference") else "", tag, frozenset({str(digest)} if digest else ()), architecture)
