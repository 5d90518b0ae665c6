"""An image gets its name only after it has proved itself: scanned by the caller, then run here with its own `verify`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError
from builder.image import engine, inspect, oci
from builder.image.backends.base import Backend
from builder.image.built import BuiltImage
from builder.progress import NoProgress, Progress, step

SCRIPT = "verify"
TAIL = 15
PROVE_S = 900.0
NOT_FOUND = (126, 127)


def script(folder: Path) -> Path | None:
    """The script `verify` beside builder.yaml. Raises ConfigError if it is there and cannot be run: a proof is not skipped."""
    path = folder / SCRIPT
    if not path.is_file():
        return None
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{path}: is not executable, and so proves nothing", hint=f"chmod +x {path}, or remove it")
    return path


@contextlib.contextmanager
def forgotten_if_refused(backend: Backend, built: BuiltImage) -> Iterator[None]:
    """Whatever goes wrong inside: the engine has no image without a name left."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(BuilderError):  # the first error is the one to tell
            backend.drop(built)
        raise


def admit(
    backend: Backend,
    archive: Path,
    built: BuiltImage,
    *,
    proof: Path | None = None,
    layout: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Load, prove, write the OCI layout if one is wanted, and only then name the image.

    proof: a script to run inside.  layout: a new or empty folder.
    Raises ClaimError (exit 7) with the script's last lines if it fails.
    """
    progress = progress or NoProgress()
    with step(progress, "image: load into the engine"):
        backend.load(archive, built)
    prove(backend, built, proof, archive.parent, progress)
    if layout is not None:
        engine.require_digests(backend.capabilities)
        oci.write_layout(archive, built.reference, layout)
    backend.tag(built)


def examine(
    archive: Path, built: BuiltImage, *, budget: int | None, secrets: Sequence[bytes] = (), progress: Progress | None = None
) -> None:
    """No secret and no weights in it, for any platform (ClaimError, exit 7), nor more bytes than `budget` (exit 6).

    secrets: passwords that this build was given; whatever they look like, they are nowhere in it.
    """
    for platform in built.platforms or ("",):
        found = inspect.scan_image(archive, built.reference, platform=platform, also=secrets, progress=progress)
        inspect.require_clean(found.findings, built.reference)
    known = built.backend is not None and built.backend.archives and built.size <= (budget or 0)
    if budget and not known:  # an engine without a containerd store tells unpacked bytes
        inspect.require_budget(inspect.report(archive, built.reference, progress=progress), budget)


def prove(backend: Backend, built: BuiltImage, proof: Path | None, private: Path, progress: Progress | None = None) -> None:
    """Run the script `proof`, if there is one, inside the image. private: a folder for what is mounted."""
    if proof is not None:
        with step(progress or NoProgress(), "image: run its verify script"):
            _prove(backend, built, proof, private)


def _prove(backend: Backend, built: BuiltImage, proof: Path, private: Path) -> None:
    """A copy that any user may read and run is mounted: the image's user is not the one who wrote the script."""
    reference, folder = built.reference, private / "proof"
    folder.mkdir(mode=0o755)
    copy = folder / SCRIPT
    shutil.copyfile(proof, copy)
    copy.chmod(0o755)
    try:
        done = backend.prove(built, copy, timeout_s=PROVE_S)
    except CapabilityError:
        raise
    except BuilderError as exc:
        raise ClaimError(f"{reference}: {proof.name} did not end: {exc.message}", hint="run it by hand in the image") from exc
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()[-TAIL:]
        lines = "".join(f"\n  {line}" for line in said)
        odd = "; its interpreter is not in the image, or the engine could not start it" if done.returncode in NOT_FOUND else ""
        raise ClaimError(
            f"{reference}: {proof.name} failed inside the image with status {done.returncode}{odd}{lines}",
            hint="the image was not named anew, nor pushed; mend the description, or the script",
            where={"status": done.returncode},
        )
