"""buildah: builds with no daemon, for machines without a Docker engine.

Differences, measured with 1.28 (Debian 12) and the image of llama.cpp: two builds without cache have the same digest; it is
not the digest that BuildKit makes, because history and empty layers differ. HEALTHCHECK does not exist in OCI images, so
buildah drops it; Kubernetes reads its own probes, not this. `--network=none` and the like on single RUN lines, and
COPY --link before 1.41, are refused (containers/buildah#4325).

/run is bound to a folder of the build's own: a secret's mount point would otherwise stay in the layer, as /run/secrets.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import BuilderError, CapabilityError
from builder.image import oci
from builder.image.backends import log
from builder.image.backends.base import ZSTD_LEVEL, Options, number
from builder.image.built import BuiltImage, Capabilities, full_name
from builder.image.dockerfile import EPOCH
from builder.progress import Progress, step

HINT = "apt-get install buildah"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
EMULATORS = {"linux/amd64": "qemu-x86_64", "linux/arm64": "qemu-aarch64"}
LONG_S = 3600
ZSTD = ("--compression-format", "zstd", "--compression-level", str(ZSTD_LEVEL))


def probe() -> Buildah:
    """Raises CapabilityError that says why this back end cannot build here."""
    try:
        version = process.run(["buildah", "--version"], timeout_s=process.ANSWER_S).stdout.decode().split()[2]
        info = json.loads(process.run(["buildah", "info"], timeout_s=process.ANSWER_S).stdout)
    except CapabilityError as exc:
        raise CapabilityError("buildah: program not found", hint=HINT) from exc
    except (BuilderError, ValueError, IndexError) as exc:
        raise CapabilityError(f"buildah: {str(exc).strip().splitlines()[-1].strip()}", hint=HINT) from exc
    platform = f"linux/{info['host']['arch']}"
    can = Capabilities(
        "buildah",
        version,
        archives=True,
        zstd=True,
        copy_link=number(version) >= (1, 41),
        healthcheck=False,
        cache=("registry",),
        platforms=(platform, *(name for name, emulator in EMULATORS.items() if name != platform and _registered(emulator))),
    )
    return Buildah(can, str(info["store"]["GraphRoot"]))


def _registered(emulator: str) -> bool:
    try:
        return "enabled" in (BINFMT / emulator).read_text()
    except OSError:
        return False


@dataclass(frozen=True)
class Buildah:
    """Images in containers/storage, of this user."""

    capabilities: Capabilities
    root: str

    def base_digest(self, base: str) -> str:
        found = _digest(base)
        if not found:
            pulled = process.run(["buildah", "pull", "--quiet", base], check=False, timeout_s=LONG_S)
            found = _digest(base)
            if not found:
                said = pulled.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
                raise CapabilityError(
                    f"base image {base} is not here and cannot be pulled: {said[0]}",
                    hint=f"buildah login, or buildah pull oci-archive:FILE and buildah tag ... {full_name(base)}",
                )
        return found

    def build(self, folder: Path, archive: Path, options: Options, progress: Progress) -> BuiltImage:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="buildah-") as work:
            private = Path(work)
            (private / "run").mkdir(mode=0o755)
            command = [*options.client(), "buildah", "build", *_arguments(options, private), str(folder)]
            places = (archive.parent, self.root)
            log.run(command, log.BuildahLog(progress), places=places)
            image = (private / "id").read_text().strip().removeprefix("sha256:")
            try:
                with step(progress, "image: write the archive"):
                    # It stages whole layers in TMPDIR. Not set for the build: its cache mounts are there.
                    export = ["env", f"TMPDIR={private}", "buildah", "push", "--quiet", *ZSTD, image, f"oci-archive:{archive}"]
                    log.run(export, log.BuildahLog(progress), places=places)
            except BaseException:
                archive.unlink(missing_ok=True)
                raise
        return dataclasses.replace(oci.read(archive, ""), id=image)

    def load(self, archive: Path, built: BuiltImage) -> None:
        """It is in the storage since it was built."""

    def tag(self, built: BuiltImage) -> None:
        _call("tag", built.id, full_name(built.reference))

    def drop(self, built: BuiltImage) -> None:
        """Untagged images are also the cache of the next build, and `buildah prune` removes them."""

    def save(self, reference: str, archive: Path) -> None:
        if self.inspect(reference) is None:
            raise CapabilityError(f"{reference}: no such image in buildah's storage", hint="run `builder build` first")
        try:
            _call("push", "--quiet", *ZSTD, full_name(reference), f"oci-archive:{archive}", timeout_s=LONG_S)
        except BaseException:
            archive.unlink(missing_ok=True)
            raise

    def inspect(self, reference: str) -> BuiltImage | None:
        """Without digest and size: the storage keeps layers unpacked, and a push packs them again, to the same bytes."""
        done = process.run(
            ["buildah", "inspect", "--type=image", full_name(reference)], check=False, timeout_s=process.ANSWER_S
        )
        if done.returncode:
            return None
        found = json.loads(done.stdout)
        return BuiltImage(reference, "", 0, tuple(found["OCIv1"]["rootfs"]["diff_ids"]), id=str(found["FromImageID"]))

    def prove(self, built: BuiltImage, script: Path, *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        name = f"builder-prove-{uuid.uuid4().hex[:12]}"
        _call("from", "--quiet", "--pull-never", f"--name={name}", built.id)
        try:
            command = [
                "buildah",
                "run",
                "--network=none",
                f"--volume={script}:/verify:ro",
                *_isolation(),
                name,
                "--",
                "/verify",
            ]
            return process.run(command, check=False, timeout_s=timeout_s)
        finally:
            process.run(["buildah", "rm", name], check=False, timeout_s=process.CHANGE_S)

    def push(self, reference: str) -> str:
        with tempfile.TemporaryDirectory(prefix="builder-push-") as work:
            told = Path(work) / "digest"
            name = full_name(reference)
            _call("push", "--quiet", *ZSTD, f"--digestfile={told}", name, f"docker://{name}", timeout_s=None)
            return told.read_text().strip()

    def remote_digest(self, reference: str) -> str:
        if process.which("skopeo") is None:
            return ""
        command = ["skopeo", "inspect", "--format={{.Digest}}", f"docker://{full_name(reference)}"]
        return process.run(command, timeout_s=process.ANSWER_S).stdout.decode().strip()

    def room(self) -> str:
        return self.root


def _arguments(options: Options, private: Path) -> list[str]:
    found = ["--layers", "--format=oci", "--pull=never", f"--timestamp={EPOCH}", f"--iidfile={private / 'id'}"]
    found += [f"--volume={private / 'run'}:/run", *_isolation()]
    found += [f"--secret=id={name},src={path}" for name, path in sorted(options.secrets.items())]
    if options.network != "default":
        found += [f"--network={options.network}"]
    found += [f"--platform={name}" for name in options.platforms]
    found += [f"--cache-from={place}" for place in options.cache_from]
    found += [f"--cache-to={options.cache_to}"] if options.cache_to else []
    return found + (["--no-cache"] if options.no_cache else [])


def _isolation() -> list[str]:
    """Without a runtime, RUN lines still work in a plain chroot."""
    return [] if process.which("crun") or process.which("runc") else ["--isolation=chroot"]


def _digest(base: str) -> str:
    """As it was pulled: of the index where the registry has one, which is what docker calls the digest too."""
    done = process.run(["buildah", "images", "--json", base], check=False, timeout_s=process.ANSWER_S)
    return str(json.loads(done.stdout)[0]["digest"]) if done.returncode == 0 else ""


def _call(*args: str, timeout_s: float | None = process.CHANGE_S) -> str:
    return process.run(["buildah", *args], timeout_s=timeout_s).stdout.decode(errors="replace").strip()
