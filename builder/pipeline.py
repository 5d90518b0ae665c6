"""THE MAP: one function per artefact, one line per step. Data flows forward only; every value has a JSON form.

    ModelRef ──resolve──▶ ModelSnapshot ──plan──▶ ChunkPlan ──push──▶ Manifest ─┬─▶ image ──build──▶ BuiltImage ──▶ VerifyReport
     (asked)              (files, commit)          (pure)            (store)    └─▶ volume ─bake──▶ DataVolume ──▶ NodeSpecs

No formatting and no printing. `builder/cli` calls one of these per command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.config.load import Loaded
from builder.config.spec import Bake
from builder.engines.base import Engine
from builder.format.manifest import Manifest
from builder.image.engine import BuiltImage
from builder.image.make import make
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.specs import NodeSpecs, node_specs
from builder.node.verify import VerifyDisk, VerifyPlan
from builder.node.verify import verify as open_copy
from builder.progress import NoProgress, Progress
from builder.stores.base import Store
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import RestoreReport, restore
from builder.transfer.source import Source
from builder.verify import container, launch, run
from builder.verify.report import VerifyReport
from builder.weights.push import PushReport, push
from builder.weights.repair import RepairReport, repair
from builder.weights.split import plan

QUIET = NoProgress()


def publish_weights(
    ref: ModelRef,
    store: Store,
    workers: Engine,
    *,
    name: str,
    chunk_bytes: int,
    token: str = "",
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> PushReport:
    """The model in the store, in verified chunks, its manifest last. Sends only what is missing."""
    snapshot = resolve(ref, token=token)
    chunks = plan(snapshot, chunk_bytes=chunk_bytes)
    return push(chunks, store, workers, name=name, dry_run=dry_run, progress=progress)


def repair_weights(
    ref: ModelRef,
    store: Store,
    workers: Engine,
    *,
    name: str,
    token: str = "",
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> RepairReport:
    """The model in the store as it was pushed. Sends only the chunks that are bad or missing."""
    snapshot = resolve(ref, token=token)
    return repair(store, name, snapshot, engine=workers, dry_run=dry_run, progress=progress)


def restore_weights(
    source: Source, ref: str, folder: Path, *, concurrency: int = 8, progress: Progress = QUIET
) -> RestoreReport:
    """The model as plain files, byte for byte, in a folder that is visible only when complete."""
    manifest = read_manifest(source, ref)
    return restore(manifest, source, folder, concurrency=concurrency, progress=progress)


def build_image(
    loaded: Loaded, *, manifest: str, tag: str = "", no_cache: bool = False, oci: Path | None = None, progress: Progress = QUIET
) -> BuiltImage:
    """The serving image: slim, no weights, no secrets, the verified loader inside. oci: also as a layout, for a bake."""
    return make(loaded, manifest=manifest, tag=tag or None, no_cache=no_cache, oci=oci, progress=progress)


def bake_volume(order: BakePlan, progress: Progress = QUIET) -> DataVolume:
    """The node volume: image and small weights in place, pinned, written without a cloud instance."""
    return bake(order, progress=progress)


def prove_volume(volume: DataVolume, progress: Progress = QUIET) -> VerifyDisk:
    """The proof: a copy of the volume, opened by a second containerd, starts its images with no pull."""
    return open_copy(VerifyPlan(volume.path), progress=progress)


def specify_node(volume: DataVolume, settings: Bake, name: str) -> NodeSpecs:
    """What a cluster needs to use the volume: EC2NodeClass, user data, Packer variables, hydration plan."""
    return node_specs(volume, settings, name=name)


def verify_image(
    loaded: Loaded, manifest: Manifest, environ: Mapping[str, str], *, models: Path | None = None, progress: Progress = QUIET
) -> VerifyReport:
    """The built image, started, asked and loaded: where every second of its cold start went."""
    image = loaded.spec.image
    server = _server(loaded, manifest, environ, models)
    options = container.Options(gpu=loaded.spec.verify.gpu)
    return run.verify_image(f"{image.repository}:{image.tag}", server, loaded.spec.verify, options=options, progress=progress)


def verify_in_place(
    loaded: Loaded, manifest: Manifest, environ: Mapping[str, str], *, models: Path | None = None, progress: Progress = QUIET
) -> VerifyReport:
    """The same on this machine's own Python, where no container engine answers."""
    server = _server(loaded, manifest, environ, models)
    return run.verify_in_place(server, loaded.spec.verify, environ=environ, progress=progress)


def _server(loaded: Loaded, manifest: Manifest, environ: Mapping[str, str], models: Path | None) -> launch.Launch:
    return launch.of(
        loaded.spec, name=manifest.name, manifest=manifest.digest, store=loaded.store_url, environ=environ, models=models
    )
