"""The manifest: every file of a model, cut into chunks, each with its digests. Its sha256 is the model's version.

Text form is canonical JSON (sorted keys, no spaces, ASCII), so equal manifests have equal digests:

    {"files": [{"path", "size", "sha256", "crc64nvme", "mode", "header",
                "chunks": [[sha256, offset, size, crc64nvme], ...],
                "tensors": {name: {"dtype", "shape", "offset", "size", "row_bytes", "group"}}}, ...],
     "format": 1, "name", "order": [chunk sha256, ...], "revision", "small": {path: base64}, "source", "tool"}

In a store:  chunks/sha256/<2 hex>/<64 hex>     raw bytes of one file
             manifests/sha256/<64 hex>          this JSON, written after its last chunk: there means complete
             refs/<name>, refs/<name>@<revision>   "sha256:<64 hex>\\n", the manifest last pushed under that name

A manifest is data from elsewhere: `parse` refuses every path that would leave its folder, every chunk that does not
join its neighbours, and every version newer than this code. Tensor names are scoped by file, because one model folder
may hold several networks (diffusers: unet and vae share names).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from builder.errors import ConfigError, IntegrityError

FORMAT = 1
MAX_CHUNK_BYTES = 128 << 20  # a reader allocates this much per connection, so a hostile manifest must not raise it
MAX_MANIFEST_BYTES = 512 << 20
SMALL_BYTES = 1 << 20  # configs up to this size also travel inside the manifest
RESERVED = ".builder"  # the folder of markers inside a restored model; no model file may lie there
TENSOR_MODES = ("safetensors", "gguf")
PATH_BYTES, NAME_BYTES = 3072, 255  # Linux: 4096 for a path with the folder before it, 255 for each name in it
_HUGE = 1 << 63  # no size or offset reaches this
_SAID = 200  # characters of a stranger's text in a message
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FILE_KEYS = {"path", "size", "sha256", "crc64nvme", "mode", "header", "chunks", "tensors"}
_TENSOR_KEYS = {"dtype", "shape", "offset", "size", "row_bytes", "group"}
_KEYS = {"format", "name", "source", "revision", "tool", "files", "order", "small"}
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_CRC = re.compile(r"[0-9a-f]{16}\Z")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


class Chunk(NamedTuple):
    """One object in the store: raw bytes of one file.

    sha256: bare hex; also the object's name.  offset, size: bytes within the file.
    crc64nvme: 16 hex digits, big endian, as S3's x-amz-checksum-crc64nvme decoded.
    """

    sha256: str
    offset: int
    size: int
    crc64nvme: str

    @property
    def key(self) -> str:
        return chunk_key(self.sha256)


class Tensor(NamedTuple):
    """One tensor of one file. offset: first byte within the file; size: bytes; row_bytes: bytes per index of axis 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    row_bytes: int
    group: str = "other"


@dataclass(frozen=True)
class File:
    """One file of the model.

    mode: "safetensors", "gguf" or "raw", which is how it was cut.  header: leading bytes that are its header.
    sha256, crc64nvme: of the whole file.  chunks cover [0, size) once and in order; an empty file has none.
    """

    path: str
    size: int
    sha256: str
    crc64nvme: str
    mode: str
    header: int = 0
    chunks: tuple[Chunk, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def tensors_in(self, start: int, end: int) -> list[str]:
        """Names of the tensors that have a byte in [start, end)."""
        return [t.name for t in self.tensors if t.size and t.offset < end and t.offset + t.size > start]


@dataclass(frozen=True)
class Manifest:
    """A complete model version. order: chunk sha256 in the order a server needs them, each once."""

    name: str
    source: str
    revision: str
    tool: str
    files: tuple[File, ...]
    order: tuple[str, ...]
    small: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical JSON; the version of the model."""
        return "sha256:" + hashlib.sha256(self.to_bytes()).hexdigest()

    def file(self, path: str) -> File:
        for f in self.files:
            if f.path == path:
                return f
        raise KeyError(path)

    def chunks(self) -> Iterator[tuple[File, Chunk]]:
        """Every place a chunk goes, in need order. A chunk that occurs twice is yielded at both places, together."""
        places: dict[str, list[tuple[File, Chunk]]] = {}
        for f in self.files:
            for c in f.chunks:
                places.setdefault(c.sha256, []).append((f, c))
        for sha256 in self.order:
            yield from places[sha256]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "tool": self.tool,
            "files": [_file_json(f) for f in self.files],
            "order": list(self.order),
            "small": {path: base64.b64encode(body).decode() for path, body in self.small.items()},
        }

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()


def chunk_key(sha256: str) -> str:
    return f"chunks/sha256/{sha256[:2]}/{sha256}"


def manifest_key(digest: str) -> str:
    """digest: `sha256:<hex>`."""
    return f"manifests/sha256/{digest.removeprefix('sha256:')}"


def ref_key(ref: str) -> str:
    """ref: a name, or `name@revision` or `name@tag`. Raises ConfigError unless both parts match NAME."""
    parts = ref.split("@")
    if len(parts) > 2 or not all(NAME.match(part) for part in parts):
        raise ConfigError(f"{ref!r} is not a model reference", hint="give name, name@revision or sha256:<64 hex digits>")
    return f"refs/{ref}"


def is_digest(text: str) -> bool:
    """True for `sha256:` and 64 lower-case hex digits."""
    return text.startswith("sha256:") and bool(_HEX.match(text[7:]))


def parse(body: bytes, *, at: str, digest: str = "") -> Manifest:
    """The manifest in `body`, checked.

    at: where it came from, for messages.  digest: `sha256:<hex>` it must have, when known.
    Raises IntegrityError: wrong digest, not JSON, newer format, unsafe path, chunks that overlap or leave a hole.
    """
    found = "sha256:" + hashlib.sha256(body).hexdigest()
    if digest and found != digest:
        raise IntegrityError(
            f"{at}: manifest is {found}, expected {digest}",
            hint="push the model again; chunks that are already there are not sent twice",
            where={"object": at},
        )
    try:
        raw = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{at}: manifest is not JSON: {str(exc)[:_SAID]}", where={"object": at}) from exc
    if not isinstance(raw, dict) or type(raw.get("format")) is not int or raw["format"] < 1:
        raise IntegrityError(f"{at}: not a builder manifest", where={"object": at})
    if raw["format"] > FORMAT:
        raise IntegrityError(
            f"{at}: manifest has format {raw['format']}, this builder reads up to {FORMAT}",
            hint="use a newer builder",
            where={"object": at},
        )
    try:
        if _SURROGATE.search(body):
            json.dumps(raw, ensure_ascii=False).encode()  # half of a pair cannot be written to a disk
        manifest = _manifest(raw)
        # What json read, written again: other spaces, another order, another way to write a number or a letter give other
        # bytes. Keys that the format does not know are refused by _manifest.
        canonical = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() == body
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, binascii.Error) as exc:
        raise IntegrityError(f"{at}: manifest: {_reason(exc)}", where={"object": at}) from exc
    if not canonical:
        raise IntegrityError(f"{at}: manifest is not in canonical form", where={"object": at})
    return manifest


def safe_path(path: str) -> str:
    """`path` itself. Raises ValueError unless it is relative, normalised, and stays inside the folder it is put in."""
    if not isinstance(path, str):
        raise TypeError(f"path {path!r} is not a string")
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"path {path[:_SAID]!r} is not a plain relative path")
    if len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES or max(map(len, parts)) * 4 > NAME_BYTES:
        _require_short(path, parts)
    if parts[0].lower() == RESERVED:  # in any case: some file systems do not tell them apart
        raise ValueError(f"path {path[:_SAID]!r} lies in the reserved folder {RESERVED}/")
    return path


def _require_short(path: str, parts: list[str]) -> None:
    size, longest = (max(len(p.encode("utf-8", "surrogatepass")) for p in some) for some in ([path], parts))
    if size > PATH_BYTES or longest > NAME_BYTES:
        limits = f"expected at most {PATH_BYTES}, and {NAME_BYTES} for a name in it"
        raise ValueError(f"path {path[:64]!r}... has {size} bytes, a name in it {longest}; {limits}")


def _file_json(f: File) -> dict[str, Any]:
    return {
        "path": f.path,
        "size": f.size,
        "sha256": f.sha256,
        "crc64nvme": f.crc64nvme,
        "mode": f.mode,
        "header": f.header,
        "chunks": [[c.sha256, c.offset, c.size, c.crc64nvme] for c in f.chunks],
        "tensors": {
            t.name: {
                "dtype": t.dtype,
                "shape": list(t.shape),
                "offset": t.offset,
                "size": t.size,
                "row_bytes": t.row_bytes,
                "group": t.group,
            }
            for t in f.tensors
        },
    }


def _manifest(raw: dict[str, Any]) -> Manifest:
    _only(raw, _KEYS, "manifest")
    files = tuple(_file(f) for f in raw["files"])
    _distinct([f.path for f in files])
    order = tuple(_list(raw["order"], "order"))
    for sha256 in order:
        if type(sha256) is not str or not _HEX.match(sha256):
            _hex(sha256, "order")
    sizes: dict[str, int] = {}
    for f in files:
        for c in f.chunks:
            if sizes.setdefault(c.sha256, c.size) != c.size:
                raise ValueError(f"chunk {c.sha256} has two sizes")
    if len(order) != len(sizes) or set(order) != sizes.keys():
        raise ValueError("order does not name every chunk exactly once")
    small = {safe_path(p): base64.b64decode(b, validate=True) for p, b in raw["small"].items()}
    by_path = {f.path: f for f in files}
    for path, body in small.items():
        if path not in by_path or hashlib.sha256(body).hexdigest() != by_path[path].sha256:
            raise ValueError(f"small file {path!r} differs from its own sha256")
    return Manifest(
        name=_matches(raw["name"], NAME, "name"),
        source=_text(raw["source"], "source"),
        revision=_text(raw["revision"], "revision"),
        tool=_text(raw["tool"], "tool"),
        files=files,
        order=order,
        small=small,
    )


def _distinct(paths: list[str]) -> None:
    """Raises ValueError for a path that occurs twice, or is a file here and a folder there."""
    ordered = sorted(path.replace("/", "\0") for path in paths)  # a folder's files come right after its own name
    for one, other in itertools.pairwise(ordered):
        if one == other or other.startswith(one + "\0"):
            path = one.replace("\0", "/")[:_SAID]
            raise ValueError(f"path {path!r} occurs twice" if one == other else f"path {path!r} is both a file and a folder")


def _only(raw: dict[str, Any], keys: set[str], what: str) -> None:
    if raw.keys() != keys:
        missing, unknown = sorted(keys - raw.keys()), sorted(raw.keys() - keys)
        raise ValueError(f"{what}: missing key {missing[0]!r}" if missing else f"{what}: unknown key {unknown[0][:_SAID]!r}")


def _file(raw: dict[str, Any]) -> File:
    path = safe_path(raw["path"])
    _only(raw, _FILE_KEYS, path)
    size = _count(raw["size"], f"{path}: size")
    chunks = tuple(_chunks(_list(raw["chunks"], f"{path}: chunks"), path, size))
    header = _count(raw["header"], f"{path}: header")
    tensors = tuple(_tensor(name, t, size) for name, t in raw["tensors"].items())
    if header > size or raw["mode"] not in (*TENSOR_MODES, "raw"):
        raise ValueError(f"{path}: header of {header} bytes, mode {_short(raw['mode'])}")
    return File(
        path, size, _hex(raw["sha256"], path), _matches(raw["crc64nvme"], _CRC, path), raw["mode"], header, chunks, tensors
    )


def _chunks(rows: list[Any], path: str, size: int) -> Iterator[Chunk]:
    """Ten thousands of them: checked in one pass, the helpers called only to say what is wrong."""
    end, is_hex, is_crc = 0, _HEX.match, _CRC.match
    for sha256, offset, length, crc in rows:
        if type(sha256) is not str or not is_hex(sha256):
            _hex(sha256, path)
        if type(crc) is not str or not is_crc(crc):
            _matches(crc, _CRC, path)
        if type(offset) is not int or type(length) is not int or offset != end or not 0 < length <= MAX_CHUNK_BYTES:
            offset, length = _count(offset, path), _count(length, path)
            raise ValueError(
                f"{path}: chunk at {offset} has {length} bytes; expected offset {end}, 1 to {MAX_CHUNK_BYTES} bytes"
            )
        end += length
        yield Chunk(sha256, offset, length, crc)
    if end != size:
        raise ValueError(f"{path}: chunks cover {end} of {size} bytes")


def _tensor(name: str, raw: dict[str, Any], file_size: int) -> Tensor:
    if raw.keys() != _TENSOR_KEYS:
        _only(raw, _TENSOR_KEYS, f"tensor {name[:_SAID]!r}")
    offset, size, row, shape = raw["offset"], raw["size"], raw["row_bytes"], tuple(_list(raw["shape"], "shape"))
    for value in (offset, size, row, *shape):
        if type(value) is not int or not 0 <= value < _HUGE:
            _count(value, f"tensor {name[:_SAID]!r}")
    if offset + size > file_size:
        raise ValueError(f"tensor {name[:_SAID]!r}: bytes [{offset}, {offset + size}) lie outside a file of {file_size}")
    if size and row > size:
        raise ValueError(f"tensor {name[:_SAID]!r}: rows of {row} bytes in {size} bytes")
    dtype, group = raw["dtype"], raw["group"]
    if type(dtype) is not str or type(group) is not str:
        raise TypeError(f"tensor {name[:_SAID]!r}: dtype or group is not a string")
    return Tensor(name, dtype, shape, offset, size, row, group)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads(object_pairs_hook=...): raises ValueError for a key that occurs twice, which json keeps silent about."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"name {key!r} occurs twice")
        out[key] = value
    return out


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _HUGE:
        raise ValueError(f"{what}: {_short(value)} is not a count")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{what}: {_short(value)} is not a list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what}: {_short(value)} is not a string")
    return value


def _matches(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.match(value):
        raise ValueError(f"{what}: {_short(value)} does not match {pattern.pattern}")
    return value


def _hex(value: object, what: str) -> str:
    return _matches(value, _HEX, what)


def _short(value: object) -> str:
    """repr, cut; of an integer that is too long to print, that it is one."""
    return "a huge integer" if isinstance(value, int) and abs(value) >= _HUGE else repr(value)[:_SAID]


def _reason(exc: Exception) -> str:
    return (f"missing key {exc}" if isinstance(exc, KeyError) else str(exc))[: 2 * _SAID]
