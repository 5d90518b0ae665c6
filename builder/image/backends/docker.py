"""BuildKit inside a Docker engine, reached by a docker program that speaks to it without the buildx plugin (18.09 to 22).

From Docker 23 on the program itself has no BuildKit client: without the plugin it can only start the old builder, which knows
neither secrets nor mounts (docker/cli, docs/deprecated.md). docker-py speaks to the old builder only (docker/docker-py#2230).

Such a build ends in the engine: as an image without a name, which `docker save` then turns into the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, CapabilityError
from builder.image import oci
from builder.image.backends import log
from builder.image.backends.base import PROXIES, Options, number
from builder.image.built import BuiltImage, Capabilities
from builder.image.dockerfile import EPOCH
from builder.progress import Progress

HINT = "install Docker 26 or newer with buildx (in a checkout: make engine), or buildah"
PULL_S = 900
LOAD_S = 3600
CLASSIC = "the engine's own builder keeps the time of day in each layer"


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answers. client, server: versions. containerd: its image store is containerd's.

    platform: such as linux/amd64. root: where it keeps images.
    """

    client: str
    server: str
    containerd: bool
    platform: str
    root: str


def engine() -> Engine:
    """Raises CapabilityError where no docker program is, or no engine answers it."""
    try:
        told = json.loads(call("version", "--format", "{{json .}}"))
        status, root = call("info", "--format", "{{json .DriverStatus}}\n{{.DockerRootDir}}").splitlines()
    except CapabilityError as exc:
        raise CapabilityError("docker: program not found", hint=HINT) from exc
    except (BuilderError, ValueError) as exc:
        raise CapabilityError(f"docker: {_last(str(exc)) or 'no engine answers'}", hint=HINT) from exc
    client, server = told["Client"], told["Server"] or {}
    platform = f"{server['Os']}/{server['Arch']}"
    return Engine(client["Version"], server["Version"], "io.containerd.snapshotter" in status, platform, root)


def probe() -> Docker:
    """Raises CapabilityError that says why this back end cannot build here."""
    found = engine()
    if number(found.server) < (20, 10):  # RUN --mount and COPY --chmod without a syntax line
        raise CapabilityError(f"docker: engine {found.server} is too old; expected 20.10 or newer", hint=HINT)
    if number(found.client) >= (23, 0):
        why = f"docker: program {found.client} has no BuildKit client of its own; from 23 on that is buildx"
        raise CapabilityError(why, hint="apt-get install docker-buildx, or your distribution's docker-buildx-plugin")
    can = Capabilities(
        "docker",
        found.server,
        unreproducible=CLASSIC,
        copy_link=number(found.server) >= (23, 0),
        platforms=(found.platform,),
    )
    return Docker(can, found)


@dataclass(frozen=True)
class Docker:
    """Images in a Docker engine; builds by the engine's own BuildKit."""

    capabilities: Capabilities
    engine: Engine

    def base_digest(self, base: str) -> str:
        found = _inspect(base)
        if found is None:
            pulled = process.run(["docker", "pull", "--quiet", base], check=False, timeout_s=PULL_S)
            found = _inspect(base)
            if found is None:
                said = _last(pulled.stderr.decode(errors="replace")) or "no reason given"
                raise CapabilityError(
                    f"base image {base} is not here and cannot be pulled: {said}",
                    hint="make base" if base.startswith("debian:bookworm") else f"docker login, or docker load {base}",
                )
        return _repo_digest(found)

    def build(self, folder: Path, archive: Path, options: Options, progress: Progress) -> BuiltImage:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="id-") as work:
            told = Path(work) / "id"
            command = [*self._client(options), *arguments(options), f"--iidfile={told}", str(folder)]
            log.run(command, log.BuildKitLog(progress), places=self._places(archive))
            image = told.read_text().strip()
        with _taking_back(archive, self, image):
            call("save", "--output", str(archive), image, timeout_s=LOAD_S)
            built = self.inspect(image)
        if built is None:
            raise BuilderError(f"{image}: built, but not in the engine", hint=log.DIED)
        return built

    def load(self, archive: Path, built: BuiltImage) -> None: ...

    def tag(self, built: BuiltImage) -> None:
        call("tag", built.id, built.reference, timeout_s=process.CHANGE_S)

    def drop(self, built: BuiltImage) -> None:
        self._forget(built.id)

    def save(self, reference: str, archive: Path) -> None:
        if _inspect(reference) is None:
            raise CapabilityError(f"{reference}: no such image in the engine", hint="run `builder build` first")
        with _taking_back(archive):
            call("save", "--output", str(archive), reference, timeout_s=LOAD_S)

    def inspect(self, reference: str) -> BuiltImage | None:
        found = _inspect(reference)
        if found is None:
            return None
        digest = _repo_digest(found) if self.engine.containerd else ""
        return BuiltImage(reference, digest, int(found["Size"]), tuple(found["RootFS"]["Layers"]), id=str(found["Id"]))

    def prove(self, built: BuiltImage, script: Path, *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        name = f"builder-prove-{uuid.uuid4().hex[:12]}"
        command = ["docker", "run", "--rm", f"--name={name}", "--network=none", f"--volume={script}:/verify:ro"]
        try:
            return process.run([*command, "--entrypoint=/verify", built.id], check=False, timeout_s=timeout_s)
        except BaseException:
            process.run(["docker", "rm", "--force", name], check=False, timeout_s=process.CHANGE_S)
            raise

    def push(self, reference: str) -> str:
        said = call("push", reference, timeout_s=None)
        found = re.search(r"digest: (sha256:[0-9a-f]{64}) size:", said)
        return found[1] if found else ""

    def remote_digest(self, reference: str) -> str:
        told = json.loads(call("manifest", "inspect", "--verbose", *_insecure(reference), reference))
        return str(told["Descriptor"]["digest"]) if isinstance(told, dict) else ""

    def room(self) -> str:
        return self.engine.root if Path(self.engine.root).is_dir() else ""

    def _forget(self, image: str) -> None:
        found = _inspect(image)
        if found is not None and not found.get("RepoTags"):
            call("image", "rm", image, timeout_s=process.CHANGE_S)

    def _client(self, options: Options) -> list[str]:
        return [*options.client("DOCKER_BUILDKIT=1"), "docker", "build"]

    def _places(self, archive: Path) -> list[str]:
        return [str(place) for place in (archive.parent, self.room()) if str(place)]


class _taking_back(contextlib.AbstractContextManager["_taking_back"]):
    """Whatever goes wrong inside: no archive is left, and `image` is forgotten."""

    def __init__(self, archive: Path, backend: Docker | None = None, image: str = "") -> None:
        self.archive, self.backend, self.image = archive, backend, image

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: object) -> None:
        if kind is None:
            return
        places = log.full([self.archive.parent])
        self.archive.unlink(missing_ok=True)
        if self.backend is not None:
            self.backend._forget(self.image)
        if isinstance(exc, BuilderError) and places:
            raise CapabilityError(f"no space left on {places}: {_last(exc.message)}", hint=oci.HINT_FULL) from exc


def arguments(options: Options) -> list[str]:
    """What every BuildKit client takes."""
    found = ["--progress=plain", f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}"]
    found += [f"--build-arg={name}" for name in PROXIES]  # without a value: the client's own, where it has one
    found += [f"--secret=id={name},src={path}" for name, path in sorted(options.secrets.items())]
    if options.network != "default":
        found += [f"--network={options.network}"]
    if options.platforms:
        found += [f"--platform={','.join(options.platforms)}"]
    return found + (["--no-cache"] if options.no_cache else [])


def _insecure(reference: str) -> list[str]:
    """Engines speak plain HTTP to 127.0.0.0/8; this one command has to be told."""
    return ["--insecure"] if reference.startswith(("127.", "localhost:")) else []


def _inspect(reference: str) -> dict[str, Any] | None:
    done = process.run(["docker", "image", "inspect", reference], check=False, timeout_s=process.ANSWER_S)
    if done.returncode:
        return None
    first: dict[str, Any] = json.loads(done.stdout)[0]
    return first


def _repo_digest(found: dict[str, Any]) -> str:
    """The manifest's digest; the image id where the engine has none (it is one in the containerd store)."""
    return next((str(d).partition("@")[2] for d in found.get("RepoDigests") or ()), str(found["Id"]))


def call(*args: str, timeout_s: float | None = process.ANSWER_S) -> str:
    return process.run(["docker", *args], timeout_s=timeout_s).stdout.decode(errors="replace").strip()


def raw_digest(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def _last(said: str) -> str:
    return (said.strip().splitlines() or [""])[-1].strip()
