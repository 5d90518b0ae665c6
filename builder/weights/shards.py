"""Files that together are one network: `<stem>-00001-of-00005.<suffix>`, or those that one index lists.

A missing part or a tensor in two parts is refused here, before upload: engines take whichever they read last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from builder.errors import IntegrityError
from builder.format.manifest import Tensor
from builder.models.source import ModelFile

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?:safetensors|gguf))\Z")
_INDEX = ".safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20


def check(tensors: Mapping[str, Iterable[Tensor]], files: Mapping[str, ModelFile]) -> None:
    """tensors: of each file, by its path in the model.  files: for reading the indexes.

    Raises IntegrityError that names the missing file, or the tensor and both files it is in.
    """
    for label, members in [*_numbered(tensors), *_indexed(files)]:
        for path in members:
            if path not in tensors:
                raise _bad(path, f"missing, though {label} names it", "download it, or include it")
        _distinct({path: tensors[path] for path in members})


def _numbered(paths: Iterable[str]) -> list[tuple[str, list[str]]]:
    sets: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for path in paths:
        if match := _PART.match(path):
            stem, count, suffix = match["stem"], match["count"], match["suffix"]
            parts = [f"{stem}-{n:05d}-of-{count}{suffix}" for n in range(1, int(count) + 1)]
            sets.setdefault((stem, count, suffix), (path, parts))
    return list(sets.values())


def _indexed(files: Mapping[str, ModelFile]) -> Iterable[tuple[str, list[str]]]:
    for path, file in files.items():
        if path.endswith(_INDEX) and file.size <= MAX_INDEX_BYTES:
            with file.open() as reading:
                body = reading.read_at(0, file.size)
            try:
                names = set(json.loads(body)["weight_map"].values())
                folder = PurePosixPath(path).parent
                members = sorted(str(folder / name) for name in names)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                raise _bad(path, f"not an index with a weight_map: {exc}", "download it again") from exc
            yield path, members


def _distinct(files: Mapping[str, Iterable[Tensor]]) -> None:
    seen: dict[str, str] = {}
    for path, tensors in files.items():
        for tensor in tensors:
            if tensor.name in seen:
                what = f"tensor {tensor.name!r} is here and in {seen[tensor.name]}"
                raise _bad(path, what, "remove the file that does not belong", tensor.name)
            seen[tensor.name] = path


def _bad(path: str, what: str, hint: str, tensor: str = "") -> IntegrityError:
    where = {"file": path, "tensor": tensor} if tensor else {"file": path}
    return IntegrityError(f"{path}: {what}", hint=hint, where=where)
