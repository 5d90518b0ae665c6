"""THE MAP: one function per artefact, one line per step. Data flows forward only; every value has a JSON form.

    ModelRef ──resolve──▶ ModelSnapshot ──split──▶ ChunkPlan ──push──▶ Manifest ─┬─▶ image ─build─▶ BuiltImage ──▶ VerifyReport
     (asked)              (files, commit)          (pure)             (store)    └─▶ volume ─bake─▶ DataVolume ──▶ NodeSpecs

No formatting and no printing. `builder/cli` calls one of these per command; `builder/demo.py` calls them all. Each imports what
it uses: a pull starts in half the time that loading everything takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.progress import NoProgress, Progress

if TYPE_CHECKING:
    from builder.config.load import Loaded
    from builder.config.spec import Bake, Verify
    from builder.engines.base import Engine
    from builder.image.built import BuiltImage
    from builder.image.context import Baked
    from builder.image.lock import Lock
    from builder.models.source import ModelRef
    from builder.node.bake import BakePlan, DataVolume
    from builder.node.hot.hotlist import HotList
    from builder.node.hot.start import HotPlan
    from builder.node.specs import NodeSpecs, SnapshotRef
    from builder.node.verify import VerifyDisk, VerifyPlan
    from builder.stores.base import Store
    from builder.transfer.cache import Budget, Held
    from builder.transfer.compiled import Artifact
    from builder.transfer.restore import RestoreReport, Transfer
    from builder.transfer.source import Source
    from builder.verify.container import Options
    from builder.verify.launch import Launch
    from builder.verify.report import VerifyReport
    from builder.weights.copy import CopyReport
    from builder.weights.diff import DiffReport
    from builder.weights.gc import GcReport
    from builder.weights.plain import PlainReport
    from builder.weights.push import PushReport
    from builder.weights.refs import TagReport
    from builder.weights.repair import RepairReport
    from builder.weights.sign import PublicKey, Signer, SignReport, Vouched
    from builder.weights.verify import VerifyReport as StoreReport

QUIET = NoProgress()


def publish_weights(
    ref: ModelRef,
    store: Store,
    workers: Engine,
    *,
    name: str,
    chunk_bytes: int,
    memory: int = 0,
    index: Path | None = None,
    token: str = "",
    plain: bool = False,
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> PushReport:
    """The model in the store, in verified chunks, its manifest last. Sends only what is missing.

    memory: see push.  index: folder for what is learned of files by reading them; None: nothing is kept.
    """
    from builder.models.resolve import resolve
    from builder.weights import push, split
    from builder.weights.index import Index

    snapshot = resolve(ref, token=token)
    chunks = split.plan(snapshot, chunk_bytes=chunk_bytes)
    return push.push(
        chunks, store, workers, name=name, memory=memory, index=Index(index), plain=plain, dry_run=dry_run, progress=progress
    )


def check_weights(store: Store, ref: str, workers: Engine, *, remote: bool = False, progress: Progress = QUIET) -> StoreReport:
    """Every chunk of the model in the store against its digests; every fault named."""
    from builder.weights import verify

    return verify.verify(store, ref, engine=workers, remote=remote, progress=progress)


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
    from builder.models.resolve import resolve
    from builder.weights import repair

    snapshot = resolve(ref, token=token)
    return repair.repair(store, name, snapshot, engine=workers, dry_run=dry_run, progress=progress)


def check_plain(store: Store, ref: str, workers: Engine, *, remote: bool = False, progress: Progress = QUIET) -> PlainReport:
    """The original files beside the chunks, against the same manifest."""
    from builder.weights import plain

    return plain.verify_plain(store, ref, engine=workers, remote=remote, progress=progress)


def compare_weights(store: Store, before: str, after: str, *, other: Store | None = None) -> DiffReport:
    """What differs between two versions, the second one perhaps in another store. Reads the manifests alone."""
    from builder.transfer.manifests import read_manifest
    from builder.weights import diff

    return diff.diff(read_manifest(store.source(), before), read_manifest((other or store).source(), after))


def compare_source(report: PushReport, store: Store, ref: str) -> DiffReport:
    """What a push would change. report: of that push, with dry_run."""
    from builder.transfer.manifests import read_manifest
    from builder.weights import diff, refs

    before = read_manifest(store.source(), ref) if refs.read(store, ref) else None
    return diff.diff(before, report.manifest, send_chunks=report.sent_chunks, send_bytes=report.sent_bytes)


def tag_weights(
    store: Store, ref: str, tag: str, *, force: bool = False, dry_run: bool = False, progress: Progress = QUIET
) -> TagReport:
    """A name of its own for one version, which keeps it from being collected."""
    from builder.weights import refs

    return refs.tag(store, ref, tag, force=force, dry_run=dry_run, progress=progress)


def untag_weights(store: Store, ref: str, *, force: bool = False, dry_run: bool = False) -> TagReport:
    """The ref gone; its version stays until it is collected."""
    from builder.weights import refs

    return refs.delete(store, ref, force=force, dry_run=dry_run)


def copy_weights(
    store: Store,
    ref: str,
    to: Store,
    workers: Engine,
    *,
    memory: int,
    tag: str = "",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> CopyReport:
    """The model in another store, every chunk hashed on its way, its refs last."""
    from builder.weights import copy

    return copy.copy(store, ref, to, engine=workers, memory=memory, tag=tag, force=force, dry_run=dry_run, progress=progress)


def collect_weights(
    store: Store,
    workers: Engine,
    *,
    grace_s: float,
    keep_last: int,
    wait_s: float | None = None,
    dry_run: bool = True,
    progress: Progress = QUIET,
) -> GcReport:
    """The store without what nothing leads to; with dry_run, as by default, only what that is."""
    from builder.weights import gc

    return gc.gc(store, engine=workers, grace_s=grace_s, keep_last=keep_last, wait_s=wait_s, dry_run=dry_run, progress=progress)


def sign_weights(store: Store, ref: str, signer: Signer) -> SignReport:
    """A signature beside the manifest in the store: this key's holder vouches for the model."""
    from builder.weights import sign

    return sign.sign_ref(store, ref, signer)


def require_signature(store: Store, ref: str, keys: Sequence[PublicKey]) -> Vouched:
    """The digest to go on with, of a manifest that one of the keys has signed; before any chunk is read."""
    from builder.weights import sign

    return sign.require(store.source(), ref, keys)


def restore_weights(
    source: Source, ref: str, folder: Path, *, how: Transfer | None = None, progress: Progress = QUIET
) -> RestoreReport:
    """The model as plain files, byte for byte, in a folder that is visible only when complete."""
    from builder.transfer.manifests import read_manifest
    from builder.transfer.restore import Transfer, restore
    from builder.transfer.retry import retrying

    source, how = retrying(source), how or Transfer()
    return restore(
        read_manifest(source, ref),
        source,
        folder,
        concurrency=how.concurrency,
        memory=how.memory,
        sha256=how.sha256,
        progress=progress,
    )


def cache_weights(
    source: Source,
    ref: str,
    root: Path,
    *,
    budget: Budget | None = None,
    how: Transfer | None = None,
    progress: Progress = QUIET,
) -> Held:
    """The model in this node's models root, fetched once whoever asks, and in use until the result is released."""
    from builder.transfer import cache
    from builder.transfer.manifests import read_manifest
    from builder.transfer.restore import Transfer, restore
    from builder.transfer.retry import retrying

    source, how = retrying(source), how or Transfer()
    manifest = read_manifest(source, ref)

    def fetch(folder: Path) -> RestoreReport:
        return restore(
            manifest, source, folder, concurrency=how.concurrency, memory=how.memory, sha256=how.sha256, progress=progress
        )

    return cache.ensure(manifest, root, fetch, budget=budget, progress=progress)


def capture_compiled(
    root: Path | None,
    container: str,
    folder: Path,
    *,
    private: Path,
    store: Store | None,
    workers: Engine,
    name: str = "",
    progress: Progress = QUIET,
) -> tuple[Artifact, PushReport | None]:
    """What an engine compiled, as an artifact in `folder`, and as NAME@KEY in the store if there is one.

    root: a cache root; None: that of the container.  private: a folder for the copy of it.  name: default: the model's own.
    """
    from dataclasses import replace

    from builder.image import warmed
    from builder.models.resolve import resolve
    from builder.models.source import ModelRef
    from builder.transfer import compiled
    from builder.weights import push, split

    taken = warmed.Warmed(root) if root else warmed.take(container, private)
    made = compiled.pack(taken.root, folder, dict(taken.about))
    if store is None:
        return made, None
    snapshot = replace(resolve(ModelRef(str(folder))), source=compiled.SOURCE, revision=made.fingerprint.short)
    name = name or made.fingerprint.about.get("name", "")
    return made, push.push(split.plan(snapshot, chunk_bytes=split.TARGET_BYTES), store, workers, name=name, progress=progress)


def render_image(loaded: Loaded, manifest: str) -> str:
    """The text of the Dockerfile. manifest: digest of the weights, or "" where it is not known yet."""
    from builder.image import locked, stubs
    from builder.image.dockerfile import dockerfile

    baked, lock = baked_cache(loaded, manifest), locked.read(loaded.folder, loaded.spec)
    stubs.require(loaded.spec.image, lock)
    return dockerfile(loaded.spec, lock, manifest=manifest, cache_key=baked.key if baked else "")


def baked_cache(loaded: Loaded, manifest: str = "") -> Baked | None:
    """The compile cache that image.compile_cache names, every byte of it checked; None where it names none.

    Raises ConfigError if no start of this image would use it: nothing of it compiles, or the cache is of other wheels, another
    engine, root or model.
    """
    if loaded.spec.image.compile_cache is None:
        return None
    from builder.image import caches, locked
    from builder.image.context import Baked
    from builder.image.dockerfile import lock_digest
    from builder.transfer import compiled

    found = compiled.load(loaded.path_of(loaded.spec.image.compile_cache))
    caches.refuse_other(loaded.spec.image, found.fingerprint, lock_digest(locked.read(loaded.folder, loaded.spec)), manifest)
    compiled.verify(found)
    return Baked(found.folder, found.fingerprint.key)


def lock_image(loaded: Loaded, environ: Mapping[str, str]) -> Lock:
    """Every wheel of the image, pinned and hashed, in layers. Asks the package index. environ: of the resolver."""
    from builder.image import machine, resolve

    with tempfile.TemporaryDirectory(prefix="builder-lock-") as private:
        given = machine.gather(loaded, Path(private), environ)
        return resolve.resolve(loaded.spec, machine.places(loaded, given, environ))


def build_image(
    loaded: Loaded,
    *,
    manifest: str = "",
    tag: str | None = None,
    no_cache: bool = False,
    pinned_base: str = "",
    cache_from: Sequence[str] = (),
    cache_to: str = "",
    oci: Path | None = None,
    attest: Path | None = None,
    push: bool = False,
    sign: str | None = None,
    memory: Path | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Progress = QUIET,
) -> BuiltImage:
    """The serving image in the local engine: slim, the verified loader inside, no weights and no secrets in any layer.

    tag: another reference than the description's.  pinned_base: digest that the base image must have.
    cache_from, cache_to: folders or repositories with a build's cache.
    oci: a new or empty folder for the same image as an OCI layout, for a bake.  attest: folder for SBOM and provenance.
    push: also to its registry.  sign: cosign's key for what was pushed, "" for its keyless way.
    memory: folder for notes on what was built; an image of the same inputs is then not built again.
    environ: variables that image.index names.
    It has its name, its layout and its place in the registry only after the scan and its own `verify` have passed.
    """
    from builder.image import admission, backends, context, lint, locked, machine, registry, scratch, standing, stubs
    from builder.image import attest as documents
    from builder.image.backends.base import Options

    image, lock = loaded.spec.image, locked.read(loaded.folder, loaded.spec)
    stubs.require(image, lock)
    proof, name, backend = admission.script(loaded.folder), tag or f"{image.repository}:{image.tag}", backends.find()
    described = documents.prepare(attest, sign, image.platforms)
    with scratch.folder() as private:
        given = machine.gather(loaded, private, environ)
        link, archive = backend.capabilities.copy_link, private / "image.tar"
        made = context.write(
            private / "context", loaded.spec, lock,
            manifest=manifest, wheelhouse=given.wheelhouse, baked=baked_cache(loaded, manifest), link=link,
        )  # fmt: skip
        text = (made.folder / "Dockerfile").read_text()
        lint.require_clean(lint.lint(text, path=f"{loaded.path} (rendered)", gpu_archs=image.gpu_archs))
        began, limit = documents.now(), loaded.spec.verify.budget.image_size
        options = Options(
            given.secrets,
            image.build_network,
            no_cache,
            pinned_base,
            platforms=image.platforms,
            cache_from=tuple(cache_from),
            cache_to=cache_to,
            environ=given.environ,
        )
        note = standing.key(made.digest, name, backends.checked_base(backend, image.base, pinned_base), backend)
        alike = None if no_cache or oci or described or cache_to else standing.recall(memory, note, backend, limit)
        if alike is not None:
            admission.prove(backend, alike, proof, private, progress)
            return registry.push(backend, alike, progress) if push else alike
        built = backends.build(
            backend, made.folder, reference=name, base=image.base, archive=archive, options=options, progress=progress
        )
        with admission.forgotten_if_refused(backend, built):
            admission.examine(archive, built, budget=limit, secrets=given.told(), progress=progress)
            about = documents.of_build(archive, built, loaded.spec, lock, made.digest, manifest, began) if described else None
            admission.admit(backend, archive, built, proof=proof, layout=oci, progress=progress)
    standing.remember(memory, note, built)
    if about is not None and attest is not None:
        about.write(attest)
    built = registry.push(backend, built, progress) if push else built
    if about is not None and sign is not None:
        documents.sign(built, sign, about, environ)
    return built


def bake_volume(plan: BakePlan, *, progress: Progress = QUIET) -> DataVolume:
    """The node volume: images and small weights in place, pinned, written without a cloud instance."""
    from builder.node import bake

    return bake.bake(plan, progress=progress)


def prove_volume(plan: VerifyPlan, *, progress: Progress = QUIET) -> VerifyDisk:
    """The proof: a copy of the volume, opened by a second containerd, starts its images with no pull."""
    from builder.node import verify as volumes

    return volumes.verify(plan, progress=progress)


def find_hot_blocks(plan: HotPlan, *, progress: Progress = QUIET) -> HotList:
    """The blocks that starting the volume's images reads, in order: what a node should load first."""
    from builder.node.hot import start

    return start.hot(plan, progress=progress)


def known_hot_blocks(path: Path, disk: Path) -> HotList:
    """The list in `path`, which must have been taken from this disk."""
    from builder.node import blocks
    from builder.node.hot import hotlist

    return hotlist.read(path).of_disk(blocks.scan(disk).sha256, disk)


def specify_node(volume: DataVolume, settings: Bake, *, name: str, snapshot_id: str = "", cluster: str = "") -> NodeSpecs:
    """What a cluster needs to use the volume: EC2NodeClass, user data, Packer variables, hydration plan."""
    from builder.node import specs

    wanted, where = snapshot_id or specs.SNAPSHOT, cluster or specs.CLUSTER
    return specs.node_specs(volume, settings, name=name, snapshot_id=wanted, cluster=where)


def specify_again(
    record: Path,
    *,
    settings: Mapping[str, Any],
    name: str = "",
    to: Path | None = None,
    hot: Path | None = None,
    reader_image: str = "",
    **at: str,
) -> tuple[SnapshotRef, NodeSpecs, Path]:
    """The same from the record that bake disk wrote, once the cloud has given the disk its id; and the disk they lie beside."""
    from builder.config.recorded import settings_of
    from builder.node import specs

    found = specs.read_record(record)
    disk = (to or record.parent).absolute() / record.name.removesuffix(".json")
    volume = found.volume | {"path": str(record.parent.absolute() / disk.name)}
    chosen = settings_of(found.settings, **settings)
    ref = specs.snapshot_ref(volume, chosen, name=name or found.name, **at)
    reads = specs.hot_texts(hot, ref, reader_image) if hot else {}
    return ref, specs.NodeSpecs(specs.render(ref, hot=reads), ref.hydration), disk


def verify_image(
    reference: str, server: Launch, verify: Verify, *, box: Options, timeout_s: float | None = None,
    progress: Progress = QUIET,
) -> VerifyReport:  # fmt: skip
    """The built image, started, asked and loaded: where every second of its cold start went."""
    from builder.verify import run

    return run.verify_image(reference, server, verify, options=box, timeout_s=timeout_s or run.TIMEOUT_S, progress=progress)


def verify_in_place(
    server: Launch, verify: Verify, *, environ: Mapping[str, str], timeout_s: float | None = None, progress: Progress = QUIET
) -> VerifyReport:
    """The same on this machine's own Python, where no container engine answers."""
    from builder.verify import run

    return run.verify_in_place(server, verify, environ=environ, timeout_s=timeout_s or run.TIMEOUT_S, progress=progress)
