"""From a loaded description to a built, scanned image: the one function that `builder build` and the pipeline call."""

from __future__ import annotations

import tempfile
from pathlib import Path

from builder.config.load import Loaded
from builder.image import context, engine, inspect, machine
from builder.image.engine import BuiltImage, Options
from builder.progress import NoProgress, Progress, step


def make(
    loaded: Loaded,
    *,
    manifest: str = "",
    tag: str | None = None,
    no_cache: bool = False,
    oci: Path | None = None,
    progress: Progress | None = None,
) -> BuiltImage:
    """Build the image of `loaded`, scan it, and leave it in the engine. oci: a new folder for the image as an OCI layout.

    manifest: digest of the weights, where known. Raises CapabilityError (no engine, no base image), BuilderError (a step
    failed) and ClaimError (a secret or weights in a layer).
    """
    progress = progress or NoProgress()
    image = loaded.spec.image
    reference = tag or f"{image.repository}:{image.tag}"
    with tempfile.TemporaryDirectory(prefix="builder-image-") as work:
        private = Path(work)  # mode 0700
        given = machine.gather(loaded, private)
        made = context.write(
            private / "context",
            loaded.spec,
            manifest=manifest,
            wheelhouse=given.wheelhouse,
            lock=loaded.folder / context.LOCK,
        )
        options = Options(given.secrets, image.build_network, no_cache)
        archive = private / "image.tar"
        built = engine.build(
            made.folder, reference=reference, base=image.base, archive=archive, options=options, progress=progress
        )
        with step(progress, "image: scan for secrets and weights"):
            if not archive.exists():
                engine.save(reference, archive)
            inspect.require_clean(inspect.scan(archive), reference)
        if oci is not None and engine.find().containerd:
            engine.unpack(archive, oci)
        elif oci is not None:
            engine.export_oci(reference, oci)  # says why it cannot
    return built
