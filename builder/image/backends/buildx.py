"""`docker buildx build`: the back end that can do everything.

Where the engine keeps images in containerd, or the builder runs in a container of its own, the build is exported once as an
OCI archive. It is the one exporter there that rewrites file times (the image exporter refuses: `"rewrite-timestamp" conflicts
with "unpack"`), and with them two builds of the same folder have the same digest. The archive's manifest is the image's
manifest, so its digest is the registry's. It carries no name: loading it makes an image that nobody can find by accident.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import CapabilityError
from builder.image import oci
from builder.image.backends import log
from builder.image.backends.base import ZSTD_LEVEL, Options, is_folder, number
from builder.image.backends.docker import CLASSIC, HINT, LOAD_S, Docker, Engine, arguments, call, engine, raw_digest
from builder.image.built import BuiltImage, Capabilities
from builder.progress import Progress

NO_STORE = (
    "the engine keeps no compressed layers and cannot export an OCI archive (daemon.json: features.containerd-snapshotter)"
)
NO_REWRITE = "BuildKit before 0.13 cannot set the times of files in layers"


def probe() -> Buildx:
    """Raises CapabilityError that says why this back end cannot build here."""
    found = engine()
    plugin = process.run(["docker", "buildx", "version"], check=False, timeout_s=process.ANSWER_S)
    if plugin.returncode:
        raise CapabilityError("buildx: the plugin does not answer", hint=HINT)
    told = process.run(["docker", "buildx", "inspect"], check=False, timeout_s=process.ANSWER_S)
    if told.returncode:
        said = told.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise CapabilityError(f"buildx: its builder does not answer: {said[-1]}", hint="docker buildx use default")
    facts = _facts(told.stdout.decode(errors="replace"))
    version = plugin.stdout.decode(errors="replace").split()
    inside = facts.get("Driver", "docker") == "docker"
    return Buildx(_capabilities(found, version[1] if len(version) > 1 else "unknown", facts), found, inside)


def _facts(said: str) -> dict[str, str]:
    """The first of each key that `docker buildx inspect` prints: Driver, Platforms, BuildKit version."""
    found: dict[str, str] = {}
    for line in said.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def _capabilities(found: Engine, version: str, facts: dict[str, str]) -> Capabilities:
    """The docker driver uses the engine's BuildKit, whose version only the engine's own tells (26.0 has 0.13, 23.0 0.10)."""
    inside = facts.get("Driver", "docker") == "docker"
    kit = number(facts.get("BuildKit version", ""))
    archives = found.containerd or not inside
    rewrites = number(found.server) >= (26, 0) if inside else kit >= (0, 13)
    why = "" if archives and rewrites else NO_REWRITE if archives else f"{NO_STORE}; {CLASSIC}"
    names = [re.sub(r"\*$", "", name) for name in re.split(r",\s*", facts.get("Platforms", ""))]
    others = [name for name in names if re.fullmatch(r"linux/[a-z0-9]+", name) and name != found.platform]
    return Capabilities(
        "buildx",
        version,
        archives=archives,
        zstd=archives,
        unreproducible=why,
        copy_link=number(found.server) >= (23, 0) if inside else kit >= (0, 10),
        cache=("local", "registry") if archives else (),
        platforms=(found.platform, *dict.fromkeys(others)),
        multi_platform=archives,
    )


@dataclass(frozen=True)
class Buildx(Docker):
    """Images in a Docker engine; builds by buildx. inside: with the engine's own BuildKit, not one in a container."""

    inside: bool = True

    def build(self, folder: Path, archive: Path, options: Options, progress: Progress) -> BuiltImage:
        if not self.capabilities.archives:
            return super().build(folder, archive, options, progress)
        with self._base(options) as base:
            command = [*self._client(options), *arguments(options), *base, *_caches(options), _output(archive)]
            try:
                log.run([*command, str(folder)], log.BuildKitLog(progress), places=self._places(archive))
            except BaseException:
                archive.unlink(missing_ok=True)
                raise
        built = oci.read(archive, "")
        return dataclasses.replace(built, id=built.digest)  # containerd knows images by their manifest or index

    @contextlib.contextmanager
    def _base(self, options: Options) -> Iterator[list[str]]:
        """The very base that was checked. By its name alone BuildKit asks the registry first, and takes what that has now.

        A name that no registry answers for makes the engine's BuildKit take the engine's own image. A builder in a container
        sees none of those, and asks the registry by digest.
        """
        name, digest = options.base
        if not digest.startswith("sha256:") or "@" in name:
            yield []
        elif not self.inside:
            yield [f"--build-context={name}=docker-image://{name}@{digest}"]
        else:
            own = f"localhost:1/builder-base:{uuid.uuid4().hex[:12]}"
            call("tag", name, own, timeout_s=process.CHANGE_S)
            try:
                yield [f"--build-context={name}=docker-image://{own}"]
            finally:
                process.run(["docker", "image", "rm", own], check=False, timeout_s=process.CHANGE_S)

    def load(self, archive: Path, built: BuiltImage) -> None:
        if self.capabilities.archives:
            call("load", "--quiet", "--input", str(archive), timeout_s=LOAD_S)

    def remote_digest(self, reference: str) -> str:
        return raw_digest(
            process.run(["docker", "buildx", "imagetools", "inspect", "--raw", reference], timeout_s=process.ANSWER_S).stdout
        )

    def _client(self, options: Options) -> list[str]:
        return [*options.client("BUILDX_NO_DEFAULT_ATTESTATIONS=1"), "docker", "buildx", "build"]


def _output(archive: Path) -> str:
    """zstd for every layer, the base's too: nodes unpack it seven times as fast as gzip."""
    zstd = f"compression=zstd,compression-level={ZSTD_LEVEL},force-compression=true"
    return f"--output=type=oci,dest={archive},{zstd},rewrite-timestamp=true"


def _caches(options: Options) -> list[str]:
    """mode=max: also the stages that the final image only copies from, which are the slow ones."""
    found = []
    for place in options.cache_from:
        found.append(f"--cache-from=type=local,src={place}" if is_folder(place) else f"--cache-from=type=registry,ref={place}")
    if options.cache_to:
        place = options.cache_to
        where = f"type=local,dest={place}" if is_folder(place) else f"type=registry,ref={place},image-manifest=true"
        found.append(f"--cache-to={where},mode=max")
    return found
