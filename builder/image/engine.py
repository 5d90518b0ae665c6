"""Images that the local engine keeps: as an archive to look into, and as an OCI layout to bake."""

from __future__ import annotations

from pathlib import Path

from builder.errors import CapabilityError, IntegrityError
from builder.image import backends, oci, scratch
from builder.image.built import Capabilities

STORE = "turn on the containerd image store (daemon.json: features.containerd-snapshotter), or install Docker 26 with buildx"


def save(reference: str, archive: Path) -> None:
    """The image as the new file `archive`. Raises CapabilityError if there is no engine, or no such image in it."""
    backends.find().save(reference, archive)


def export_oci(reference: str, folder: Path) -> str:
    """Write the image as an OCI layout into the new or empty folder. Returns the manifest's digest.

    `docker save` of an engine with the containerd image store writes the manifest as it is, so the digest is the one a
    registry would show; that is checked. Raises CapabilityError where the engine has no such store.
    """
    backend = backends.find()
    require_digests(backend.capabilities)
    with scratch.folder() as work:
        archive = work / "image.tar"
        backend.save(reference, archive)
        written = oci.read(archive, reference)
        known = backend.inspect(reference)
        if known is not None and known.digest and known.digest != written.digest:
            raise IntegrityError(f"{reference}: exported as {written.digest}, the engine says {known.digest}")
        oci.write_layout(archive, reference, folder)
    return written.digest


def require_digests(can: Capabilities) -> None:
    """Raises CapabilityError where images lose their registry digests."""
    if not can.archives:
        raise CapabilityError(
            f"{can.name} {can.version} keeps images without their registry digests; an OCI export would invent new ones",
            hint=STORE,
        )
