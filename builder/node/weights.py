"""Weights onto a volume: copied from a restored folder, or restored from a store right into place."""

from __future__ import annotations

import shutil
from pathlib import Path

from builder.errors import ConfigError, IntegrityError
from builder.format.volume import lock_file, marker_digest, model_dir
from builder.node.inputs import WeightsInput
from builder.node.volume import own
from builder.progress import Progress
from builder.transfer.check import check_folder
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import open_source


def put(one: WeightsInput, models: Path, progress: Progress) -> tuple[str, int]:
    """(manifest digest, bytes) of the model now in `models/<64 hex>`, every byte checked against its manifest.

    Root owns the files and everyone may read them: a pod serves them and cannot change them.
    Raises ConfigError if the folder is not a restored model or the volume has it already, IntegrityError if it is damaged.
    """
    digest = _copy(one.folder, models) if one.folder else _restore(one, models, progress)
    return digest, own(model_dir(models, digest))


def _copy(folder: Path, models: Path) -> str:
    digest = marker_digest(folder)
    if digest is None:
        raise ConfigError(f"{folder}: not a restored model", hint=f"builder weights pull --store URL --to {folder}")
    target = _free(models, digest)
    shutil.copytree(folder, target)
    if faults := check_folder(target):  # the copy, so that a read error on the way is found too
        raise IntegrityError(
            f"{folder}: {len(faults)} damaged objects:\n" + "\n".join(f"  {fault}" for fault in faults),
            hint=f"builder weights repair --local {folder} --store URL",
        )
    return digest


def _restore(one: WeightsInput, models: Path, progress: Progress) -> str:
    source = open_source(one.store, endpoint_url=one.endpoint_url, region=one.region)
    manifest = read_manifest(source, one.reference)
    target = _free(models, manifest.digest)
    restore(manifest, source, target, progress=progress)
    lock_file(target).unlink(missing_ok=True)
    return manifest.digest


def _free(models: Path, digest: str) -> Path:
    target = model_dir(models, digest)
    if target.exists():
        raise ConfigError(f"{digest}: the same weights a second time", hint="name each once")
    return target
