"""Each back end that can run on this machine, with a small base image of its own. buildah gets a storage of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder import process
from builder.image import backends
from builder.image.backends import buildah, buildx
from builder.image.backends.base import Backend, Options
from builder.image.built import BuiltImage
from tests import oci
from tests.conftest import missing


@dataclass(frozen=True)
class Ground:
    """A back end, a base image in its engine, and a folder for what is built. name: of everything made here, unique."""

    backend: Backend
    base: str
    folder: Path
    name: str

    @property
    def is_buildah(self) -> bool:
        return self.backend.capabilities.name == "buildah"

    def context(self, text: str, **files: bytes) -> Path:
        """A new build folder. text: the Dockerfile; BASE stands for the base image. files: beside it."""
        place = self.folder / f"context-{uuid.uuid4().hex[:6]}"
        place.mkdir()
        (place / "Dockerfile").write_text(text.replace("BASE", self.base))
        for name, body in files.items():
            (place / name).write_bytes(body)
        return place

    def build(self, text: str, archive: Path, options: Options | None = None, **files: bytes) -> BuiltImage:
        reference = f"{self.name}:{archive.stem}"
        return backends.build(
            self.backend, self.context(text, **files), reference=reference, base=self.base, archive=archive, options=options
        )

    def exists(self, reference: str) -> bool:
        return self.backend.inspect(reference) is not None

    def renew(self) -> None:
        """buildah's storage with nothing in it but the base."""
        process.run(["buildah", "rmi", "--all", "--force"], check=False)
        archive = f"oci-archive:{self.folder / 'base.tar'}"
        image = process.run(["buildah", "pull", "--quiet", archive]).stdout.decode().strip()
        process.run(["buildah", "tag", image, self.base])

    def rid(self, *images: str) -> None:
        for image in images:
            command = ["buildah", "rmi", "--force", image] if self.is_buildah else ["docker", "rmi", "--force", image]
            subprocess.run(command, capture_output=True, check=False)


@contextmanager
def ground(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """kind: buildx or buildah."""
    name = f"builder-test/{uuid.uuid4().hex[:10]}"
    base = f"localhost/{name}-base:1"
    oci.write_layout(folder / "base", name=base, user="", history=True)
    archive = oci.tar_layout(folder / "base", folder / "base.tar")
    if kind == "buildx":
        backend: Backend = buildx.probe()
        process.run(["docker", "load", "--input", str(archive)])
    else:
        if process.which("buildah") is None or os.geteuid() != 0:
            missing("buildah", "buildah is not here, or this is not root")
        _storage(folder, monkeypatch)
        backend = buildah.probe()
    made = Ground(backend, base, folder, name)
    if made.is_buildah:
        made.renew()
    try:
        yield made
    finally:
        if made.is_buildah:
            subprocess.run(["buildah", "rmi", "--all", "--force"], capture_output=True, check=False)
            shutil.rmtree(folder / "storage", ignore_errors=True)
        else:
            shown = ["docker", "images", "--format={{.Repository}}:{{.Tag}}"]
            names = subprocess.run(shown, capture_output=True, text=True, check=False).stdout.split()
            made.rid(base, *(one for one in names if name in one))


def _storage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfs: an overlay may lie on another overlay, as inside a container, where it cannot be mounted; the images are small."""
    storage = folder / "storage"
    conf = folder / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n')
    registries = folder / "registries.conf"
    registries.write_text('[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n')
    (folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))  # a killed buildah leaves folders there
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(registries))
