"""OCI archives and layouts as files: what they hold, and one as the other. No engine is asked.

oci-layout index.json blobs/sha256/<64 hex>      index.json names one image, or one index of several platforms' images
"""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from builder.errors import CapabilityError, IntegrityError
from builder.image import platforms
from builder.image.built import BuiltImage, full_name

HINT_FULL = "free some there, or name a larger disk: TMPDIR for what is in between, another folder for the result"
NAME = "io.containerd.image.name"  # what containerd's import calls the image
SELF = "index.json"


def read(archive: Path, reference: str) -> BuiltImage:
    """What the OCI archive holds, for one platform or several. Sizes are compressed bytes, as a registry stores them.

    Of several platforms, size and layers are those of this machine's, else of the first.
    """
    with _open(archive) as tar:
        top = _entry(_json(tar, SELF))
        found = _json(tar, _blob(top["digest"]))
        if "manifests" not in found:
            return _image(found, reference, str(top["digest"]), {})
        images = {_platform(one): str(one["digest"]) for one in found["manifests"] if _platform(one) != "unknown/unknown"}
        if not images:
            raise IntegrityError(f"{archive.name}: its index names no image")
        chosen = images.get(platforms.own(), next(iter(images.values())))
        return _image(_json(tar, _blob(chosen)), reference, str(top["digest"]), images)


def write_layout(archive: Path, reference: str, folder: Path) -> None:
    """The archive as an OCI layout in the new or empty `folder`, its image named `reference`.

    index.json is written last, so a layout without one is not a layout; after an error nothing is left of it.
    """
    made: list[Path] = []
    try:
        with _open(archive) as tar:
            index = _json(tar, SELF)
            for member in tar:
                if not member.isdir() and member.name != SELF:
                    _extract(tar, member, folder, made)
        _entry(index).setdefault("annotations", {})[NAME] = full_name(reference)
        made.append(folder / SELF)
        (folder / SELF).write_text(json.dumps(index))
    except OSError as exc:
        _remove(made, folder)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapabilityError(f"no space left on {folder}", hint=HINT_FULL) from exc
        raise CapabilityError(f"{folder}: cannot be written: {exc.strerror}", hint="name a new or empty folder") from exc
    except BaseException:
        _remove(made, folder)
        raise


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, made: list[Path]) -> None:
    """One plain file, never outside `folder`. Not tarfile's filters: Python 3.11.2, which Debian 12 carries, has none."""
    path = folder / PurePosixPath(member.name)
    if not member.isfile() or not path.resolve().is_relative_to(folder.resolve()):
        raise IntegrityError(f"{tar.name!r}: {member.name} does not belong into an OCI layout")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        made.append(path)
        shutil.copyfileobj(cast("IO[bytes]", tar.extractfile(member)), out, 1 << 20)


def _remove(made: list[Path], folder: Path) -> None:
    for path in made:
        path.unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _image(manifest: dict[str, Any], reference: str, digest: str, platforms: dict[str, str]) -> BuiltImage:
    layers = manifest["layers"]
    size = sum(layer["size"] for layer in layers)
    image = str(manifest["config"]["digest"])
    return BuiltImage(reference, digest, size, tuple(layer["digest"] for layer in layers), id=image, platforms=platforms)


def _entry(index: dict[str, Any]) -> dict[str, Any]:
    """The one thing that index.json names."""
    manifests = index["manifests"]
    if len(manifests) != 1:
        raise IntegrityError(f"index.json: {len(manifests)} manifests; expected 1, an image or an index of one")
    entry: dict[str, Any] = manifests[0]
    return entry


def _platform(entry: dict[str, Any]) -> str:
    found = entry.get("platform", {})
    return f"{found.get('os', 'unknown')}/{found.get('architecture', 'unknown')}"


def _open(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except (OSError, tarfile.TarError) as exc:
        raise IntegrityError(f"{archive}: not an image archive: {exc}", hint="make one with `docker save`") from exc


def _json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    try:
        file = tar.extractfile(name)
    except KeyError as exc:
        raise IntegrityError(f"{tar.name!r}: {name} is missing from the archive") from exc
    assert file is not None
    found: dict[str, Any] = json.load(file)
    return found


def _blob(digest: str) -> str:
    return "blobs/" + str(digest).replace(":", "/")
