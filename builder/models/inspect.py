"""What a model is, from its headers and configs alone: no weight is read, of a hub model a few KiB per file."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, RemoteError
from builder.format import gguf, safetensors
from builder.format.manifest import Tensor
from builder.models import hub, resolve
from builder.models.source import ModelFile, ModelRef, ModelSnapshot

READERS = 8  # headers at once


@dataclass(frozen=True)
class Facts:
    """What `builder init` knows about a model. Empty text and 0 mean: not known.

    name: fit for `name:`.  kind: gguf, safetensors or other.  parameters: count.  dtypes: most bytes first.
    size: bytes of all files.  files: how many.  note: why something is not known.
    """

    source: str
    name: str
    kind: str
    architecture: str = ""
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    size: int = 0
    files: int = 0
    note: str = ""

    @property
    def engine(self) -> str:
        """The engine that serves this kind of file."""
        return "llama.cpp" if self.kind == "gguf" else "transformers"


def inspect(ref: ModelRef, *, token: str = "") -> Facts:
    """The facts of a folder, a .gguf file or a hub id. An unreachable hub is a note, not an error."""
    if not ref.source.startswith(hub.SCHEME):
        return _facts(ref.source, model_name(Path(ref.source).resolve().name), resolve.resolve(ref))
    name = model_name(hub.parse(ref.source)[0].split("/")[1])
    try:
        return _facts(ref.source, name, resolve.resolve(ref, token=token))
    except RemoteError as exc:
        return Facts(ref.source, name, "gguf" if "gguf" in name else "safetensors", note=exc.message)


def _facts(source: str, name: str, snapshot: ModelSnapshot) -> Facts:
    weights = [f for f in snapshot.files if f.path.endswith((".safetensors", ".gguf"))]
    with ThreadPoolExecutor(READERS) as pool:  # of a hub model, each header is a request or two
        headers = list(pool.map(_header, weights))
    metadata = {key: value for _, about in headers for key, value in about.items()}
    config = next((f for f in snapshot.files if f.path == "config.json"), None)
    tensors = [t for found, _ in headers for t in found]
    size: Counter[str] = Counter()
    for t in tensors:
        size[t.dtype] += t.size
    return Facts(
        source=source,
        name=name,
        kind=_kind([f.path for f in snapshot.files]),
        architecture=str(metadata.get("general.architecture", "")) or _architecture(config),
        parameters=sum(prod(t.shape) for t in tensors),
        dtypes=tuple(dtype for dtype, _ in size.most_common()),
        size=snapshot.size,
        files=len(snapshot.files),
    )


def model_name(text: str) -> str:
    """`text` as a name that builder.yaml takes.

    >>> model_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    'smollm2-135m-instruct.q4-1'
    """
    plain = re.sub(r"\.(gguf|safetensors)$", "", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:63].rstrip("-.") or "model"


def _header(file: ModelFile) -> tuple[list[Tensor], dict[str, Any]]:
    with file.open() as data:
        if file.path.endswith(".gguf"):
            parsed = gguf.parse(data.read_at, file.size, path=file.path)
            return list(parsed.tensors), parsed.metadata
        return list(safetensors.parse(data.read_at, file.size, path=file.path).tensors), {}


def _kind(paths: list[str]) -> str:
    for kind in ("gguf", "safetensors"):
        if any(p.endswith(f".{kind}") for p in paths):
            return kind
    return "other"


def _architecture(config: ModelFile | None) -> str:
    if config is None or config.size > 1 << 20:
        return ""
    with config.open() as data:
        body = data.read_at(0, config.size)
    try:
        raw = json.loads(body)
        return str((raw.get("architectures") or [raw.get("model_type", "")])[0])
    except (ValueError, AttributeError, IndexError) as exc:
        raise BuilderError(f"{config.at}: not a model config: {exc}") from exc
