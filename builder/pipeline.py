"""THE MAP: one function per artefact, one line per step. Data flows forward only; every value has a JSON form.

    ModelRef ──resolve──▶ ModelSnapshot ──split──▶ ChunkPlan ──push──▶ Manifest ─┬─▶ image ─build─▶ BuiltImage ──▶ VerifyReport
     (asked)              (files, commit)          (pure)             (store)    └─▶ volume ─bake─▶ DataVolume ──▶ NodeSpecs

No formatting and no printing. `builder/cli` calls one of these per command; `builder/demo.py` calls them all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from builder.config.load import Loaded
from builder.config.spec import Bake, Verify
from builder.engines.base import Engine
from builder.image import context, engine, inspect, machine
from builder.image.dockerfile import dockerfile
from builder.image.engine import BuiltImage
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.node import bake, specs
from builder.node import verify as volumes
from builder.node.bake import BakePlan, DataVolume
from builder.node.specs import NodeSpecs
from builder.node.verify import VerifyDisk, VerifyPlan
from builder.progress import NoProgress, Progress
from builder.stores.base import Store
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import RestoreReport, restore
from builder.transfer.retry import retrying
from builder.transfer.source import Source
from builder.verify import container, run
from builder.verify.launch import Launch
from builder.verify.report import VerifyReport
from builder.weights import push, repair, split
from builder.weights import verify as stored
from builder.weights.push import PushReport
from builder.weights.repair import RepairReport
from builder.weights.verify import VerifyReport as StoreReport

QUIET = NoProgress()


def publish_weights(
    ref: ModelRef,
    store: Store,
    workers: Engine,
    *,
    name: str,
    chunk_bytes: int,
    token: str = "",
    plain: bool = False,
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> PushReport:
    """The model in the store, in verified chunks, its manifest last. Sends only what is missing."""
    snapshot = resolve(ref, token=token)
    chunks = split.plan(snapshot, chunk_bytes=chunk_bytes)
    return push.push(chunks, store, workers, name=name, plain=plain, dry_run=dry_run, progress=progress)


def check_weights(store: Store, ref: str, workers: Engine, *, remote: bool = False, progress: Progress = QUIET) -> StoreReport:
    """Every chunk of the model in the store against its digests; every fault named."""
    return stored.verify(store, ref, engine=workers, remote=remote, progress=progress)


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
    return repair.repair(store, name, snapshot, engine=workers, dry_run=dry_run, progress=progress)


def restore_weights(
    source: Source, ref: str, folder: Path, *, concurrency: int = 8, progress: Progress = QUIET
) -> RestoreReport:
    """The model as plain files, byte for byte, in a folder that is visible only when complete."""
    source = retrying(source)
    manifest = read_manifest(source, ref)
    return restore(manifest, source, folder, concurrency=concurrency, progress=progress)


def render_image(loaded: Loaded, manifest: str) -> str:
    """The text of the Dockerfile. manifest: digest of the weights, or "" where it is not known yet."""
    return dockerfile(loaded.spec, manifest=manifest)


def build_image(
    loaded: Loaded,
    *,
    manifest: str = "",
    tag: str | None = None,
    no_cache: bool = False,
    pinned_base: str = "",
    oci: Path | None = None,
    progress: Progress = QUIET,
) -> BuiltImage:
    """The serving image in the local engine: slim, the verified loader inside, no weights and no secrets in any layer.

    tag: another reference than the description's.  pinned_base: digest that the base image must have.
    oci: a new or empty folder for the same image as an OCI layout, for a bake.
    """
    image, lock = loaded.spec.image, loaded.folder / context.LOCK
    name = tag or f"{image.repository}:{image.tag}"
    with tempfile.TemporaryDirectory(prefix="builder-image-") as private:
        archive = Path(private) / "image.tar"
        given = machine.gather(loaded, Path(private))
        made = context.write(Path(private) / "context", loaded.spec, manifest=manifest, wheelhouse=given.wheelhouse, lock=lock)
        options = engine.Options(given.secrets, image.build_network, no_cache, pinned_base)
        built = engine.build(made.folder, reference=name, base=image.base, archive=archive, options=options, progress=progress)
        findings = inspect.scan(archive, progress=progress)
        if findings:
            engine.discard(name)
        inspect.require_clean(findings, name)
        engine.admit(archive, progress)
        if oci is not None:
            engine.layout(archive, name, oci)
    return built


def bake_volume(plan: BakePlan, *, progress: Progress = QUIET) -> DataVolume:
    """The node volume: images and small weights in place, pinned, written without a cloud instance."""
    return bake.bake(plan, progress=progress)


def prove_volume(plan: VerifyPlan, *, progress: Progress = QUIET) -> VerifyDisk:
    """The proof: a copy of the volume, opened by a second containerd, starts its images with no pull."""
    return volumes.verify(plan, progress=progress)


def specify_node(
    volume: DataVolume, settings: Bake, *, name: str, snapshot_id: str = specs.SNAPSHOT, cluster: str = specs.CLUSTER
) -> NodeSpecs:
    """What a cluster needs to use the volume: EC2NodeClass, user data, Packer variables, hydration plan."""
    return specs.node_specs(volume, settings, name=name, snapshot_id=snapshot_id, cluster=cluster)


def verify_image(
    reference: str, server: Launch, verify: Verify, *, box: container.Options, timeout_s: float = run.TIMEOUT_S,
    progress: Progress = QUIET,
) -> VerifyReport:  # fmt: skip
    """The built image, started, asked and loaded: where every second of its cold start went."""
    return run.verify_image(reference, server, verify, options=box, timeout_s=timeout_s, progress=progress)


def verify_in_place(
    server: Launch, verify: Verify, *, environ: Mapping[str, str], timeout_s: float = run.TIMEOUT_S, progress: Progress = QUIET
) -> VerifyReport:
    """The same on this machine's own Python, where no container engine answers."""
    return run.verify_in_place(server, verify, environ=environ, timeout_s=timeout_s, progress=progress)
