"""An image as a file or a folder: which platform, which layers, and what its documents say. Nothing is unpacked to disk.

Read are the tar of an OCI layout (BuildKit, `docker save` since 25), an OCI layout in a folder, and the older tar of
`docker save`, whose manifest.json names its layers.
Sources: OCI image-spec 1.1, image-layout.md, image-index.md, layer.md; moby's image/spec/v1.2.
"""

from __future__ import annotations

import contextlib
import platform as machine
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import ConfigError, IntegrityError
from builder.image.layout import HINT, Layout, document, objects, open_layout, part
from builder.image.stream import Stream

LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)"
)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer. digest: of its bytes as they lie there; of the unpacked ones where the archive tells no other.

    size: bytes in the archive. made_by: its history line, as the builder wrote it.
    """

    name: str
    digest: str
    size: int
    media_type: str
    made_by: str


@dataclass(frozen=True)
class Archive:
    """One image of one platform. Open it with `open_image`.

    digest: of its manifest, or "" where there is none. others: platforms that lie beside it, unread. config: its
    configuration. texts: place and content of index, manifests and annotations. beside: blobs of attestations.
    """

    path: Path
    digest: str
    platform: str
    others: tuple[str, ...]
    config: dict[str, Any]
    layers: tuple[Blob, ...]
    texts: tuple[tuple[str, Any], ...]
    beside: tuple[str, ...]
    _source: Layout

    @contextlib.contextmanager
    def layer(self, blob: Blob) -> Iterator[Stream]:
        """The unpacked tar of a layer. Raises IntegrityError at the end if its bytes are not those of its digest."""
        with self._source.open(blob.name) as file:
            stream = Stream(file, f"layer {blob.digest[:19]}")
            yield stream
            stream.drain()
        if blob.name.startswith("blobs/sha256/") and (found := stream.raw.sha256.hexdigest()) != blob.name[13:]:
            raise IntegrityError(f"layer {blob.digest}: its bytes have the digest sha256:{found}")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Stream]:
        """Another blob."""
        with self._source.open(name) as file:
            yield Stream(file, name)


@contextlib.contextmanager
def open_image(path: Path, platform: str = "") -> Iterator[Archive]:
    """The image in the file or folder `path`.

    platform: such as linux/arm64; without it, the only one that lies there, else this machine's.
    Raises IntegrityError for anything but an image, ConfigError for a platform that is not there.
    """
    with open_layout(path) as source:
        if "index.json" in source:
            yield _from_index(path, source, platform)
        elif "manifest.json" in source:
            yield _from_docker(path, source, platform)
        else:
            raise IntegrityError(f"{path}: neither index.json nor manifest.json; not an image archive", hint=HINT)


@dataclass(frozen=True, slots=True)
class _Found:
    """An image manifest that an index names."""

    digest: str
    platform: str
    manifest: dict[str, Any]
    config: dict[str, Any]


def _from_index(path: Path, source: Layout, platform: str) -> Archive:
    index = _Index(source)
    index.walk("index.json")
    chosen, others = _choose(path, tuple(index.found.values()), platform)
    entries = chosen.manifest["layers"]
    lines = _lines(chosen.config, len(entries))
    layers = tuple(_layer(source, entry, line) for entry, line in zip(entries, lines, strict=True))
    texts, beside = tuple(index.texts), tuple(index.beside)
    return Archive(path, chosen.digest, chosen.platform, others, chosen.config, layers, texts, beside, source)


class _Index:
    """What an index names, and the indexes in it. found: image manifests by digest. texts, beside: as in Archive."""

    def __init__(self, source: Layout) -> None:
        self.source = source
        self.found: dict[str, _Found] = {}
        self.texts: list[tuple[str, Any]] = []
        self.beside: list[str] = []

    def walk(self, name: str, depth: int = 0) -> None:
        index = document(self.source, name)
        self.texts.append((name, index))
        for entry in objects(index, "manifests", name):
            blob = _blob(str(entry.get("digest", "")))
            if depth <= 3 and blob in self.source:  # what is not there belongs to another platform
                self.entry(entry, blob, document(self.source, blob), depth)

    def entry(self, entry: dict[str, Any], blob: str, found: Any, depth: int) -> None:
        digest = str(entry["digest"])
        if isinstance(found, dict) and "manifests" in found:
            self.walk(blob, depth + 1)
            return
        self.texts.append((digest, found))
        if _is_attestation(entry):
            layers = found.get("layers", ()) if isinstance(found, dict) else ()
            self.beside += [name for one in layers if (name := _blob(str(one.get("digest", "")))) in self.source]
            return
        objects(found, "layers", digest)
        config = document(self.source, _blob(str(part(found, "config", digest).get("digest", ""))))
        if not isinstance(config, dict):
            raise IntegrityError(f"{digest}: its configuration is no object")
        self.found[digest] = _Found(digest, _platform(entry.get("platform") or config), found, config)


def _is_attestation(entry: dict[str, Any]) -> bool:
    """BuildKit's mark (docs/attestations/attestation-storage.md)."""
    kind = (entry.get("annotations") or {}).get("vnd.docker.reference.type")
    return kind == "attestation-manifest" or (entry.get("platform") or {}).get("architecture") == "unknown"


def _choose(path: Path, found: tuple[_Found, ...], platform: str) -> tuple[_Found, tuple[str, ...]]:
    if not found:
        raise IntegrityError(f"{path}: its index names no image that the archive holds", hint=HINT)
    wanted = platform or (found[0].platform if len(found) == 1 else host())
    fits = [one for one in found if one.platform == wanted] or [one for one in found if _fits(one.platform, wanted)]
    names = tuple(sorted({one.platform for one in found}))
    if not fits:
        raise ConfigError(f"{path}: holds {', '.join(names)}; expected {wanted}", hint="name one of them with --platform")
    if len(fits) > 1:
        raise ConfigError(f"{path}: {len(fits)} different images for {wanted}; expected one", hint="save one image alone")
    return fits[0], tuple(name for name in names if name != fits[0].platform)


def host() -> str:
    """This machine's platform, as OCI writes it."""
    name = machine.machine()
    return f"linux/{_MACHINES.get(name, name)}"


def _fits(have: str, wanted: str) -> bool:
    """linux/arm64/v8 is a linux/arm64."""
    return have == wanted or have.startswith(wanted + "/")


def _platform(raw: dict[str, Any]) -> str:
    parts = [str(raw.get("os") or "linux"), str(raw.get("architecture") or "unknown"), str(raw.get("variant") or "")]
    return "/".join(part for part in parts if part)


def _layer(source: Layout, entry: dict[str, Any], line: str) -> Blob:
    digest, kind = str(entry.get("digest", "")), str(entry.get("mediaType", ""))
    if "encrypted" in kind:
        raise IntegrityError(f"layer {digest}: encrypted ({kind}); its bytes cannot be judged", hint="decrypt the image first")
    if kind and not LAYER.fullmatch(kind):
        raise IntegrityError(
            f"layer {digest}: media type {kind}; expected a tar, plain, gzip or zstd", hint="is this a container image?"
        )
    if _blob(digest) not in source:
        raise IntegrityError(f"layer {digest}: not in {source.name}", hint="save the image again, with all its layers")
    return Blob(_blob(digest), digest, source.size(_blob(digest)), kind, line)


def _from_docker(path: Path, source: Layout, platform: str) -> Archive:
    entries = document(source, "manifest.json")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        count = len(entries) if isinstance(entries, list) else "no list of"
        raise IntegrityError(f"{path}: manifest.json: {count} images; expected one", hint="save one image alone")
    names = [str(name) for name in entries[0].get("Layers") or ()]
    config = document(source, str(entries[0].get("Config", "")))
    if not isinstance(config, dict):
        raise IntegrityError(f"{path}: its configuration is no object")
    have = _platform(config)
    if platform and not _fits(have, platform):
        raise ConfigError(f"{path}: holds {have}; expected {platform}")
    ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(ids) != len(names) or not all(name in source for name in names):
        raise IntegrityError(f"{path}: {len(ids)} layers in the configuration, of which the archive holds others", hint=HINT)
    lines = _lines(config, len(names))
    layers = tuple(Blob(n, str(i), source.size(n), "", line) for n, i, line in zip(names, ids, lines, strict=True))
    return Archive(path, "", have, (), config, layers, (("manifest.json", entries),), (), source)


def _lines(config: dict[str, Any], count: int) -> list[str]:
    """One history line per layer. Where history does not tell as many, it cannot be said which line made which."""
    history = [entry for entry in config.get("history") or () if isinstance(entry, dict)]
    lines = [str(entry.get("created_by", "")) for entry in history if not entry.get("empty_layer")]
    return lines if len(lines) == count else (lines + [""] * count)[:count]


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def short(line: str) -> str:
    """A history line without BuildKit's decoration."""
    line = re.sub(r"^(RUN )?/bin/sh -c (#\(nop\) )?", "RUN ", line).removesuffix(" # buildkit")
    return re.sub(r"\s+", " ", re.sub(r"--mount=\S+ *", "", line)).strip()
