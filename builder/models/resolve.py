"""ModelRef -> ModelSnapshot: the one place that tells the kinds of sources apart."""

from __future__ import annotations

from pathlib import Path

from builder.errors import ConfigError
from builder.models import hub, local
from builder.models.source import ModelRef, ModelSnapshot


def resolve(ref: ModelRef, *, token: str = "") -> ModelSnapshot:
    """The model's files, on this machine, with sizes; nothing of a local model is read yet.

    token: for the hub, from the variable that `ref.token_env` names.
    Raises ConfigError for a source that is none, and what `hub` and `local` raise.
    """
    if ref.source.startswith(hub.SCHEME):
        return hub.snapshot(ref, token=token)
    if "://" in ref.source:
        raise ConfigError(f"{ref.source}: unknown kind of source", hint="use a folder, a file, or hf://organisation/model")
    path = Path(ref.source).expanduser()
    if path.is_dir():
        return local.folder(path, ref)
    if path.is_file():
        return local.file(path, ref)
    hint = f"for a hub model write hf://{ref.source}" if ref.source.count("/") == 1 else "check the path"
    raise ConfigError(f"{ref.source}: no such folder or file", hint=hint)
