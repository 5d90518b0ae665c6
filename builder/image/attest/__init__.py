"""What is in an image, where it came from, and who vouches for it: CycloneDX, SLSA provenance, cosign.

found = attest.describe(archive, image, base, lock=lock, spec=spec, ...)   # reads the image once
attest.require_match(found.mismatches, reference)                          # the lock is what is installed
found.write(folder)                                                        # sbom.cdx.json, provenance.intoto.json
signing.sign(reference_with_digest, key, sbom=found.sbom, provenance=found.provenance)
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import CapabilityError, ConfigError
from builder.image.attest.names import Image, parse

if TYPE_CHECKING:
    from builder.config.spec import Spec
    from builder.image.attest.inventory import Mismatch
    from builder.image.attest.provenance import Run
    from builder.image.built import BuiltImage
    from builder.image.lock import Lock

__all__ = ["Attestations", "Image", "describe", "now", "of_build", "parse", "prepare", "require_match", "sign"]

SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.intoto.json"


@dataclass(frozen=True, slots=True)
class Attestations:
    """Documents about one image, as text; provenance is "" where no build was described.

    components: in the SBOM, the image itself not counted. unowned: files that no package accounts for.
    """

    digest: str
    sbom: str
    provenance: str
    components: int
    unowned: int
    mismatches: tuple[Mismatch, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "components": self.components,
            "unowned": self.unowned,
            "mismatches": [one.to_json() for one in self.mismatches],
        }

    def write(self, folder: Path) -> tuple[Path, ...]:
        """The documents as files of `folder`, made if missing. Raises CapabilityError where it cannot be written."""
        documents = {SBOM: self.sbom, PROVENANCE: self.provenance}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, body in documents.items():
                if body:
                    (folder / name).write_text(body)
        except OSError as exc:
            raise CapabilityError(f"{folder}: cannot be written: {exc.strerror}", hint="name another folder") from exc
        return tuple(folder / name for name, body in documents.items() if body)


def describe(
    image: Path,
    reference: str = "",
    *,
    base: str = "",
    base_digest: str = "",
    lock: Lock | None = None,
    spec: Spec | None = None,
    context_digest: str = "",
    manifest: str = "",
    run: Run | None = None,
) -> Attestations:
    """Read the image in `image`, an OCI archive or layout, once, and describe it; with `spec` and `run`, its build too.

    reference: what it is called, by default as the layout says; its digest is read.
    base, base_digest: its parent; by default as the image's labels say.
    context_digest: of `image.context.Context`.  manifest: of the weights, or "".
    Same image, lock and base: same SBOM, byte for byte. Raises IntegrityError if the image cannot be read.
    """
    from builder.image.attest import inventory, provenance, sbom

    found = inventory.take(image, asks=lock.asks if lock else ())
    named = parse(reference or found.name)
    named = Image(named.repository, named.tag, found.digest)
    parent = parse(base or found.labels.get("org.opencontainers.image.base.name", ""))
    digest = base_digest or parent.digest or found.labels.get("org.opencontainers.image.base.digest", "")
    parent = Image(parent.repository, parent.tag, digest)
    story = ""
    if spec is not None and run is not None:
        inputs = provenance.Inputs(parent, context_digest, lock, manifest)
        story = json.dumps(provenance.statement(spec, named, inputs, run), indent=2, sort_keys=True) + "\n"
    text = sbom.text(found, named, parent, lock)
    return Attestations(
        digest=found.digest,
        sbom=text,
        provenance=story,
        components=len(json.loads(text).get("components", ())),
        unowned=len(found.unowned),
        mismatches=inventory.compare(found, lock) if lock else (),
    )


def prepare(folder: Path | None, key: str | None, platforms: Sequence[str] = ()) -> bool:
    """Whether a build has to be described. What would fail after it fails now: a folder, a key, cosign."""
    from builder.image.attest import signing

    if len(platforms) > 1 and (folder is not None or key is not None):
        raise ConfigError(
            f"image.platforms: {', '.join(platforms)}; an SBOM describes one image", hint="build and sign each platform alone"
        )
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise CapabilityError(f"{folder}: cannot be written: {exc.strerror}", hint="name another folder") from exc
    if key is not None:
        signing.require(key)
    return folder is not None or key is not None


def now() -> datetime:
    return datetime.now(UTC)


def of_build(
    archive: Path, built: BuiltImage, spec: Spec, lock: Lock, context_digest: str, manifest: str, began: datetime
) -> Attestations:
    """What `describe` says of an image just built. Raises ClaimError (exit 7) if its wheels are not those of the lock."""
    from builder.image.attest.provenance import Run

    can = built.backend
    run = Run(f"urn:uuid:{uuid.uuid4()}", began, now(), {can.name: can.version} if can else {})
    found = describe(
        archive,
        built.reference,
        base=built.base,
        base_digest=built.base_digest,
        lock=lock,
        spec=spec,
        context_digest=context_digest,
        manifest=manifest,
        run=run,
    )
    if spec.image.final != "dev":  # which has a pip of its own
        require_match(found.mismatches, built.reference)
    return found


def sign(built: BuiltImage, key: str, about: Attestations, environ: Mapping[str, str] | None) -> None:
    """cosign's signature and attestations for what was pushed. See `signing.sign`."""
    from builder.image.attest import signing

    named = parse(built.reference)
    reference = f"{named.repository}@{built.pushed or built.digest}"
    signing.sign(reference, key, sbom=about.sbom, provenance=about.provenance, environment=environ)


def require_match(mismatches: tuple[Mismatch, ...], reference: str) -> None:
    """Raise ClaimError (exit 7) that lists every wheel that is not as the lock has it."""
    from builder.image.attest import inventory

    inventory.require_match(mismatches, reference)
