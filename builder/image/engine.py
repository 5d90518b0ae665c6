"""The BuildKit command line: `docker buildx build`, or DOCKER_BUILDKIT=1 with an engine that has BuildKit built in.

docker-py is not used: it speaks to the old builder only (docker/docker-py#2230). Where the engine keeps images in
containerd, the build is exported once as an OCI archive and loaded: it is the one exporter there that rewrites file
times (the image exporter refuses: `"rewrite-timestamp" conflicts with "unpack"`), and with them two builds of the same
description have the same digest. The archive's manifest is the image's manifest, so its digest is the registry's.

Secrets go through BuildKit's secret mounts, as files in a folder that only this user can read: the certificate
authorities (ca), pip's index and its logins (pip_conf, netrc), apt's sources and theirs (apt_sources,
apt_auth). No ARG, ENV or COPY ever holds one.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, cast

from builder import process
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.image import faults
from builder.image.dockerfile import EPOCH
from builder.progress import NoProgress, Progress, step

HINT_ENGINE = "install Docker 26 or newer with buildx (in a checkout: make engine)"
TAIL = 25
# Predefined build arguments: BuildKit keeps them out of history and cache keys.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Backend:
    """How builds run here. buildx: the plugin answers. containerd: the engine's image store is containerd's."""

    version: str
    buildx: bool
    containerd: bool

    @property
    def archives(self) -> bool:
        """Whether builds come out as an OCI archive, with fixed file times and registry digests."""
        return self.buildx and self.containerd


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the local engine.

    reference: repository:tag. digest: of its manifest; empty where the engine keeps none. size: compressed bytes of all
    layers where there is a manifest, else unpacked. layers: their digests, base first. base_digest: of the parent image.
    """

    reference: str
    digest: str
    size: int
    layers: tuple[str, ...]
    base: str = ""
    base_digest: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "digest": self.digest,
            "size": self.size,
            "layers": list(self.layers),
            "base": self.base,
            "base_digest": self.base_digest,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class Options:
    """secrets: id to file. network: of RUN lines. no_cache: run every step again.

    pinned_base: digest that the base image must have, or "" where none is pinned yet.
    environ: variables of the build's client, without secrets.
    """

    secrets: Mapping[str, Path] = field(default_factory=dict)
    network: str = "default"
    no_cache: bool = False
    pinned_base: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


def find() -> Backend:
    """The engine that builds. Raises CapabilityError (exit 4) if none answers or none has BuildKit."""
    try:
        version = _docker("version", "--format", "{{.Server.Version}}")
    except CapabilityError as exc:
        raise CapabilityError("docker: program not found; building an image needs a Docker engine", hint=HINT_ENGINE) from exc
    except BuilderError as exc:
        raise CapabilityError(f"no Docker engine answers: {exc.message.splitlines()[-1].strip()}", hint=HINT_ENGINE) from exc
    buildx = process.run(["docker", "buildx", "version"], check=False, timeout_s=30).returncode == 0
    if not buildx and _number(version) < (18, 9):
        raise CapabilityError(f"Docker {version} has no BuildKit; expected 18.09 or newer, or buildx", hint=HINT_ENGINE)
    status = _docker("info", "--format", "{{json .DriverStatus}}")
    return Backend(version, buildx, "io.containerd.snapshotter" in status)


def base_digest(base: str) -> str:
    """The digest of the base image in the engine, pulled if need be. Raises CapabilityError if it cannot be had."""
    found = _inspect(base)
    if found is None:
        pulled = process.run(["docker", "pull", "--quiet", base], check=False, timeout_s=900)
        found = _inspect(base)
        if found is None:
            said = pulled.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise CapabilityError(
                f"base image {base} is not here and cannot be pulled: {said[0]}",
                hint="make base" if base.startswith("debian:bookworm") else f"docker login, or docker load {base}",
            )
    return _repo_digest(found)


def build(
    folder: Path, *, reference: str, base: str, archive: Path, options: Options | None = None, progress: Progress | None = None
) -> BuiltImage:
    """Build `folder` into the new file `archive`; `admit` makes it the engine's image `reference`, `discard` forgets it.

    archive: an OCI archive where the engine keeps images in containerd; else what `docker save` makes, and then the image
    is in the engine already, because such an engine has no other way.
    Raises CapabilityError without an engine or a base image, BuilderError with the failing step's last lines.
    """
    options, progress = options or Options(), progress or NoProgress()
    backend = find()
    parent = base_digest(base)
    if options.pinned_base and parent != options.pinned_base:
        raise ConfigError(
            f"base image {base} is {parent}; builder.lock pins {options.pinned_base}",
            hint="pull the pinned one, or accept the new one with `builder build --update-base`",
        )
    started = time.monotonic()
    _stream(_command(folder, reference, archive, backend, options), progress)
    if backend.archives:
        built = from_archive(archive, reference)
    else:
        built = _from_engine(reference)
        save(reference, archive)
    return dataclasses.replace(built, base=base, base_digest=parent, seconds=time.monotonic() - started)


def admit(archive: Path, progress: Progress | None = None) -> None:
    """Make what `build` left in `archive` an image of the engine."""
    if find().archives:
        with step(progress or NoProgress(), "image: load into the engine"):
            _docker("load", "--quiet", "--input", str(archive), timeout_s=1800)


def discard(reference: str) -> None:
    """Take back what `build` may have left in the engine."""
    if not find().archives:
        _docker("image", "rm", "--force", reference)


def export_oci(reference: str, folder: Path) -> str:
    """Write the image `reference` of the engine as an OCI layout into the new folder. Returns the manifest's digest.

    `docker save` of an engine with the containerd image store writes the manifest as it is, so the digest is the one a
    registry would show; that is checked. Raises CapabilityError where the engine has no such store.
    """
    _need_digests(find())
    found = _need_image(reference)
    with tempfile.TemporaryDirectory(prefix="builder-save-") as work:
        archive = Path(work) / "image.tar"
        save(reference, archive)
        unpack(archive, folder)
    digest = _index_digest(json.loads((folder / "index.json").read_bytes()))
    if digest != found["Id"]:
        raise IntegrityError(f"{reference}: exported as {digest}, the engine says {found['Id']}")
    return digest


def save(reference: str, archive: Path) -> None:
    """`docker save` into the new file `archive`. Raises CapabilityError if there is no such image."""
    _need_image(reference)
    _docker("save", "--output", str(archive), reference, timeout_s=1800)


def layout(archive: Path, reference: str, folder: Path) -> None:
    """What `build` put into `archive` as an OCI layout in the new or empty `folder`.

    Raises CapabilityError where the engine has no containerd image store, and so no registry digests.
    """
    _need_digests(find())
    unpack(archive, folder)


def unpack(archive: Path, folder: Path) -> None:
    """An OCI archive as an OCI layout in the new or empty `folder`: its plain files, none of them outside `folder`.

    Not tarfile's extraction filters: Python 3.11.2, which Debian 12 carries, has none.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = folder / PurePosixPath(member.name)
            if member.isdir():
                continue
            if not member.isfile() or not path.resolve().is_relative_to(folder.resolve()):
                raise IntegrityError(f"{archive.name}: {member.name} does not belong into an OCI layout")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                shutil.copyfileobj(cast("IO[bytes]", tar.extractfile(member)), out, 1 << 20)


def from_archive(archive: Path, reference: str) -> BuiltImage:
    """What the OCI archive holds. Sizes are compressed bytes, as a registry stores them."""
    with tarfile.open(archive) as tar:
        index = json.loads(_member(tar, "index.json"))
        digest = _index_digest(index)
        manifest = json.loads(_member(tar, "blobs/" + digest.replace(":", "/")))
    layers = manifest["layers"]
    return BuiltImage(reference, digest, sum(layer["size"] for layer in layers), tuple(layer["digest"] for layer in layers))


def _need_image(reference: str) -> dict[str, Any]:
    found = _inspect(reference)
    if found is None:
        raise CapabilityError(f"{reference}: no such image in the engine", hint="run `builder build` first")
    return found


def _need_digests(backend: Backend) -> None:
    if not backend.containerd:
        raise CapabilityError(
            f"Docker {backend.version} keeps images without their registry digests; an OCI export would invent new ones",
            hint="turn on the containerd image store (daemon.json: features.containerd-snapshotter), or " + HINT_ENGINE,
        )


def _command(folder: Path, reference: str, archive: Path, backend: Backend, options: Options) -> list[str]:
    docker = ["docker", "buildx", "build"] if backend.buildx else ["docker", "build"]
    given = [f"{name}={value}" for name, value in options.environ.items()]  # no passwords: everybody may read arguments
    command = ["env", "DOCKER_BUILDKIT=1", "BUILDX_NO_DEFAULT_ATTESTATIONS=1", *given, *docker, "--progress=plain"]
    command += [f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}"]
    command += [f"--build-arg={name}" for name in PROXIES]  # without a value: the client's own, where it has one
    command += [f"--secret=id={name},src={path}" for name, path in sorted(options.secrets.items())]
    if options.network != "default":
        command += [f"--network={options.network}"]
    if options.no_cache:
        command += ["--no-cache"]
    if backend.archives:
        name = reference if "." in reference.split("/")[0] else f"docker.io/{reference}"
        command += [f"--output=type=oci,dest={archive},name={name},rewrite-timestamp=true"]
    else:
        command += [f"--tag={reference}"]
    return [*command, str(folder)]


def _stream(command: list[str], progress: Progress) -> None:
    """Run the build, telling each step to `progress` as it starts and ends."""
    log = Log(progress)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                log.feed(line.decode(errors="replace").rstrip())
        except BaseException:
            child.terminate()  # BuildKit cancels the build when its client goes
            raise
    log.close()
    if child.returncode:
        raise log.failure(child.returncode, command)


class Log:
    """BuildKit's plain progress: `#7 [stage 1/2] RUN ...`, then `#7 0.53 output`, then `#7 DONE 1.2s`, CACHED or ERROR."""

    LINE: ClassVar[re.Pattern[str]] = re.compile(r"#(\d+) (.*)")
    STEP: ClassVar[re.Pattern[str]] = re.compile(r"\[([a-z][a-z0-9-]*) +(\d+/\d+)\] (.*)")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.names: dict[str, str] = {}
        self.tasks: dict[str, int] = {}
        self.output: dict[str, collections.deque[str]] = {}
        self.last: collections.deque[str] = collections.deque(maxlen=TAIL)
        self.failed = ""

    def feed(self, line: str) -> None:
        match = self.LINE.fullmatch(line)
        if not match:
            if line.strip():
                self.last.append(line)
            return
        number, text = match[1], match[2]
        step = self.STEP.fullmatch(text)
        if step and number not in self.names:
            self.names[number] = f"{step[1]} {step[2]}: {step[3]}"
            self.tasks[number] = self.progress.add(f"image: {step[1]} {step[2]}")
        elif text.startswith(("DONE", "CACHED")):
            self._end(number, "cached" if text.startswith("CACHED") else "")
        elif text.startswith(("ERROR", "CANCELED")):
            if text.startswith("ERROR"):
                self.failed = self.failed or number
                self.output.setdefault(number, collections.deque(maxlen=TAIL)).append(text)
            self._end(number, "failed" if text.startswith("ERROR") else "cancelled")
        else:
            said = re.sub(r"^\d+\.\d+ ", "", text)
            self.output.setdefault(number, collections.deque(maxlen=TAIL)).append(said)
            if number in self.tasks:
                self.progress.note(self.tasks[number], said[:80])

    def close(self) -> None:
        for number in list(self.tasks):
            self._end(number, "")

    def failure(self, status: int, command: list[str]) -> BuilderError:
        """The failing step and its last lines; without one, the last lines of all."""
        name = self.names.get(self.failed, "")
        tail = self.output.get(self.failed, self.last)
        said = "".join(f"\n  {line}" for line in tail if line.strip())
        what = f"image build failed in step {name}" if name else f"exit status {status} from: {shlex.join(command)}"
        known = faults.classify(said, step=name)
        if known is not None:
            return known
        return BuilderError(f"{what}{said}", hint=_hint(said), where={"step": name} if name else None)

    def _end(self, number: str, text: str) -> None:
        task = self.tasks.pop(number, None)
        if task is not None:
            self.progress.done(task, text)


def _hint(said: str) -> str:
    """The usual causes, by what the tools print."""
    if re.search(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|certificate verification failed", said):
        return "name the certificate authority of your network in image.ca_bundle"
    if re.search(r"No matching distribution|Could not find a version", said):
        return "the wheel is on no index that pip asks here: fill image.wheelhouse, or set pip's index (pip config)"
    if re.search(r"Temporary failure (in name )?resolv|Could not resolve|Network is unreachable|Connection timed out", said):
        return "the build step has no network: try image.build_network: host, or image.wheelhouse with a base that has Python"
    return ""


def _from_engine(reference: str) -> BuiltImage:
    found = _inspect(reference)
    if found is None:
        raise BuilderError(f"{reference}: built, but not in the engine")
    digest = _repo_digest(found)
    return BuiltImage(reference, digest, int(found["Size"]), tuple(found["RootFS"]["Layers"]))


def _inspect(reference: str) -> dict[str, Any] | None:
    done = process.run(["docker", "image", "inspect", reference], check=False, timeout_s=60)
    if done.returncode:
        return None
    first: dict[str, Any] = json.loads(done.stdout)[0]
    return first


def _repo_digest(found: dict[str, Any]) -> str:
    """The manifest's digest; the image id where the engine has none (it is one in the containerd store)."""
    return next((str(d).partition("@")[2] for d in found.get("RepoDigests") or ()), str(found["Id"]))


def _index_digest(index: dict[str, Any]) -> str:
    manifests = index["manifests"]
    if len(manifests) != 1:
        raise IntegrityError(f"index.json: {len(manifests)} manifests; expected 1, an image for one platform")
    return str(manifests[0]["digest"])


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError as exc:
        raise IntegrityError(f"{tar.name!r}: {name} is missing from the archive") from exc
    assert file is not None
    return file.read()


def _docker(*args: str, timeout_s: float = 60) -> str:
    return process.run(["docker", *args], timeout_s=timeout_s).stdout.decode(errors="replace").strip()


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
