"""Between the Open Inference Protocol's requests and numpy's arrays. Every refusal names the tensor, and what was expected.

    request    the bytes of a request -> arrays, and which outputs are wanted
    response   arrays -> the outputs' part of a response, and the bytes after it

Data in JSON may be nested or flat, row by row; data in bytes is little-endian and follows the JSON in the inputs' order.
Source: KServe, Open Inference Protocol V2, "Tensor Data"; Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.runtime.v2 import LETTERS, Spec

REGION = "shared_memory_region"


class Refused(Exception):
    """A request that gets an error with this HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """An output that was asked for. binary: as bytes, after the JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Request:
    """inputs: arrays by name.  outputs: in the order they were asked for; all, if none was named."""

    inputs: Mapping[str, Any]
    outputs: tuple[Wanted, ...]
    id: str = ""


def request(body: bytes, header_length: str | None, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Request:
    """Raises Refused for whatever does not fit the model's `inputs` and `outputs`."""
    size = len(body) if header_length is None else _whole(header_length, "Inference-Header-Content-Length")
    if size > len(body):
        raise Refused(400, f"Inference-Header-Content-Length: {size}, but the request has {len(body)} bytes")
    header = _object(body[:size])
    return Request(_arrays(header, memoryview(body)[size:], inputs), _wanted(header, outputs), str(header.get("id") or ""))


def response(
    arrays: Sequence[Any], wanted: Sequence[Wanted], outputs: Sequence[Spec]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The list of outputs, and the bytes of the binary ones."""
    datatypes = {spec.name: spec.datatype for spec in outputs}
    listed, blobs = [], []
    for array, want in zip(arrays, wanted, strict=True):
        datatype = datatypes[want.name]
        one: dict[str, Any] = {"name": want.name, "datatype": datatype, "shape": list(array.shape)}
        if want.binary:
            blobs.append(_packed(array, datatype))
            one["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            one["data"] = array.ravel().tolist()
        listed.append(one)
    return listed, blobs


def _arrays(header: Mapping[str, Any], data: memoryview, specs: Sequence[Spec]) -> dict[str, Any]:
    known, found = {spec.name: spec for spec in specs}, dict[str, Any]()
    for raw in _list(header, "inputs"):
        name = raw.get("name")
        if name not in known or name in found:
            said = "given twice" if name in found else "the model has no such input"
            raise Refused(400, f"input {name!r}: {said}; it takes {', '.join(known)}")
        shape = _shape(known[name], raw)
        parameters = raw.get("parameters") or {}
        if REGION in parameters:
            raise Refused(400, f"input {name}: this server has no shared memory")
        if "binary_data_size" in parameters:
            size = _whole(parameters["binary_data_size"], f"input {name}: binary_data_size")
            if size > len(data):
                raise Refused(400, f"input {name}: binary_data_size {size}, but {len(data)} bytes are left in the request")
            found[name], data = _unpacked(known[name], shape, bytes(data[:size])), data[size:]
        else:
            found[name] = _listed(known[name], shape, raw.get("data"))
    if missing := [name for name in known if name not in found]:
        raise Refused(400, f"input {', '.join(missing)}: missing")
    if len(data):
        raise Refused(400, f"{len(data)} bytes after the last binary input")
    return found


def _wanted(header: Mapping[str, Any], outputs: Sequence[Spec]) -> tuple[Wanted, ...]:
    binary = bool((header.get("parameters") or {}).get("binary_data_output"))
    if not header.get("outputs"):
        return tuple(Wanted(spec.name, binary) for spec in outputs)
    names, wanted = [spec.name for spec in outputs], []
    for raw in _list(header, "outputs"):
        parameters = raw.get("parameters") or {}
        if raw.get("name") not in names:
            raise Refused(400, f"output {raw.get('name')!r}: the model gives {', '.join(names)}")
        if REGION in parameters or "classification" in parameters:
            raise Refused(400, f"output {raw['name']}: this server has neither shared memory nor classification")
        wanted.append(Wanted(raw["name"], bool(parameters.get("binary_data", binary))))
    return tuple(wanted)


def _shape(spec: Spec, raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The tensor's shape, which fits the model's. Raises Refused."""
    shape = raw.get("shape")
    if raw.get("datatype") != spec.datatype:
        raise Refused(400, f"input {spec.name}: datatype {raw.get('datatype')!r}, expected {spec.datatype}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(400, f"input {spec.name}: shape {shape!r}, expected a list of whole numbers")
    if len(shape) != len(spec.shape) or any(want not in (-1, n) for n, want in zip(shape, spec.shape, strict=True)):
        raise Refused(400, f"input {spec.name}: shape {shape}, expected {list(spec.shape)} (-1: any)")
    return tuple(shape)


def _listed(spec: Spec, shape: tuple[int, ...], data: Any) -> Any:
    """An array from JSON. Numbers must be numbers of the kind: 1.5 is no INT64, and 300 no UINT8."""
    import numpy as np

    flat = _flat(data, spec.name)
    try:
        if spec.datatype == "BYTES":
            values = np.array([_text(value) for value in flat], dtype=object)
        else:
            kinds = (bool,) if spec.datatype == "BOOL" else (int,) if "INT" in spec.datatype else (int, float)
            if not all(type(value) in kinds for value in flat):
                raise ValueError(f"expected {spec.datatype}")
            values = np.array(flat, dtype=_dtype(spec.datatype))
            if "INT" in spec.datatype and values.tolist() != flat:  # numpy before 2 wraps around
                raise ValueError(f"expected {spec.datatype}")
        return values.reshape(shape)
    except (ValueError, TypeError, OverflowError) as exc:
        raise Refused(400, f"input {spec.name}: {len(flat)} values for shape {list(shape)}: {exc}") from exc


def _unpacked(spec: Spec, shape: tuple[int, ...], data: bytes) -> Any:
    import numpy as np

    count = 1
    for n in shape:
        count *= n
    if spec.datatype == "BYTES":
        texts = _texts(data, spec.name)
        if len(texts) != count:
            raise Refused(400, f"input {spec.name}: {len(texts)} values for shape {list(shape)}")
        return np.array(texts, dtype=object).reshape(shape)
    size = count * struct.calcsize("<" + LETTERS[spec.datatype])
    if len(data) != size:
        raise Refused(400, f"input {spec.name}: {len(data)} bytes, expected {size} for shape {list(shape)}")
    return np.frombuffer(data, dtype=_dtype(spec.datatype)).reshape(shape)


def _packed(array: Any, datatype: str) -> bytes:
    if datatype != "BYTES":
        return bytes(array.astype(_dtype(datatype), copy=False).tobytes())
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _dtype(datatype: str) -> str:
    """numpy's name: the kind, and the bytes of one value; little-endian.

    >>> [_dtype(datatype) for datatype in ("BOOL", "UINT8", "INT64", "FP16")]
    ['?', '<u1', '<i8', '<f2']
    """
    if datatype == "BOOL":
        return "?"
    kind = "f" if datatype[0] == "F" else datatype[0].lower()
    return f"<{kind}{struct.calcsize('<' + LETTERS[datatype])}"


def _flat(data: Any, name: str) -> list[Any]:
    """`data` row by row, whether nested or flat already."""
    if not isinstance(data, list):
        raise Refused(400, f"input {name}: no data")
    flat: list[Any] = data
    while flat and all(isinstance(row, list) for row in flat):
        flat = [value for row in flat for value in row]
    return flat


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.40}")
    return value


def _texts(data: bytes, name: str) -> list[str]:
    texts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data) or at + 4 > len(data):
            raise Refused(400, f"input {name}: a value runs past its {len(data)} bytes")
        try:
            texts.append(data[at + 4 : end].decode())
        except UnicodeDecodeError as exc:
            raise Refused(400, f"input {name}: {exc}") from exc
        at = end
    return texts


def _object(body: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Refused(400, f"not JSON: {exc}") from exc
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters") or {}, dict):
        raise Refused(400, "expected a JSON object, with an object in parameters")
    return raw


def _list(header: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = header.get(key)
    if not isinstance(found, list) or not all(
        isinstance(v, dict) and isinstance(v.get("parameters") or {}, dict) for v in found
    ):
        raise Refused(400, f"{key}: expected a list of objects")
    return found


def _whole(value: Any, what: str) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise Refused(400, f"{what}: {value!r:.40}, expected a whole number")
