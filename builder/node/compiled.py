"""Captured compile caches onto a volume, whole and checked, and the check of what lies there.

    var/lib/builder/compiled/<key>/     fingerprint.json files.json files.tar, as `builder cache capture` made them

The key is the digest of chip and stack (builder/format/compiled.py). A pod that mounts that folder at
/opt/builder/compile-cache, or names it in BUILDER_COMPILE_CACHE_DIR, starts with it; the runtime compares the
fingerprint once more.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, ConfigError
from builder.format.compiled import ALL
from builder.node.inputs import CompiledInput
from builder.node.targets import COMPILED
from builder.node.volume import own
from builder.progress import Progress
from builder.transfer import compiled
from builder.transfer.manifests import read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import open_source


def put(one: CompiledInput, root: Path, scratch: Path, progress: Progress) -> tuple[str, int]:
    """(key, bytes of its files) of the cache, now in its folder below `root`; every byte was compared with its list.

    scratch: a folder on the same file system, for what a store sends. Root owns the files and everyone may read them.
    Raises ConfigError if there is no captured cache, or one of that key is on the volume; IntegrityError if it is damaged.
    """
    found = compiled.load(one.folder if one.folder else _fetch(one, scratch, progress))
    key = found.fingerprint.key
    target = root / COMPILED / key
    if target.exists():
        raise ConfigError(f"{found.folder}: a second compile cache for {found.fingerprint.short}", hint="name each once")
    target.mkdir(parents=True)
    for name in ALL:
        shutil.copyfile(found.folder / name, target / name)
    shutil.rmtree(scratch, ignore_errors=True)
    compiled.verify(compiled.load(target))
    own(target)
    return key, found.bytes


def check_compiled(root: Path, record: dict[str, Any]) -> list[str]:
    """What is wrong with the compile caches below the mounted `root`, by the build record; one sentence each."""
    folder, expected = root / COMPILED, record.get("compiled", {})
    there = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    findings = [f"{key}: {'not on the disk' if key in expected else 'on the disk, not in the build record'}"
                for key in sorted(set(there) ^ set(expected))]  # fmt: skip
    for key in sorted(set(there) & set(expected)):
        try:
            found = compiled.load(there[key])
            compiled.verify(found)
        except BuilderError as exc:
            findings.append(f"{key}: {exc.message}")
            continue
        if (found.fingerprint.key, found.bytes) != (key, expected[key]):
            findings.append(f"{key}: is of {found.fingerprint.key}, {found.bytes} bytes; expected {expected[key]} bytes")
    return findings


def _fetch(one: CompiledInput, scratch: Path, progress: Progress) -> Path:
    source = open_source(one.store, endpoint_url=one.endpoint_url, region=one.region)
    restore(read_manifest(source, one.reference), source, scratch, progress=progress)
    return scratch
