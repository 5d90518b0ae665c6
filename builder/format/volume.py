"""Names inside a node volume and a restored model folder.

    <models root>/                      /var/lib/builder/models on a node; a hostPath or a baked folder
      <64 hex>/                         one restored model version, named by its manifest
        <the model's own files>
        .builder/manifest.json          canonical manifest
        .builder/complete               "sha256:<64 hex>\\n": written last; without it the folder is not a model
      .<64 hex>.partial/                being written; holds .builder/journal, the chunks already on disk
      .<64 hex>.lock                    flock: one writer per node
      .<64 hex>.use                     flock, shared: in use; only models with this file are ever evicted (transfer/cache.py)
      .<64 hex>.<8 hex>.evicted         being deleted
      .cache.lock                       flock: room is being made

`weights pull --to DIR` uses the same form with DIR in place of <64 hex>.
"""

from __future__ import annotations

from pathlib import Path

from builder.format.manifest import RESERVED, is_digest

MODELS_ROOT = "/var/lib/builder/models"
MANIFEST = f"{RESERVED}/manifest.json"
MARKER = f"{RESERVED}/complete"
JOURNAL = f"{RESERVED}/journal"


def model_dir(root: Path, digest: str) -> Path:
    """Where the model version `digest` (`sha256:<hex>`) lies under a models root."""
    return root / digest.removeprefix("sha256:")


def partial_dir(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.partial"


def lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def use_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.use"


def evicted_dir(folder: Path, token: str) -> Path:
    return folder.parent / f".{folder.name}.{token}.evicted"


def marker_digest(folder: Path) -> str | None:
    """The manifest digest that `folder` is complete for, or None."""
    try:
        text = (folder / MARKER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if is_digest(text) else None
