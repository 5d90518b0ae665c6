"""The Open Inference Protocol (KServe v2) over HTTP, as a client: ask a model for tensors, with inputs made from a text.

Warm-up, selftest and `builder verify` know nothing of a model but its metadata, so that decides what is sent:

    dimensions   an open first one (-1) is the batch; every other open one, the number of words of the text
    whole numbers   by the input's name: masks are 1, types and segments 0, positions count up; else small ids, 1 to 99
    others       numbers from 0 to 1, true, or the text itself; all follow from the text, so equal texts give equal inputs

Tensors travel as bytes (the extension binary_tensor_data), so that large ones are not measured as JSON.
Source: KServe, Open Inference Protocol V2, "Inference Request"; Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from builder.errors import ConfigError, RemoteError
from builder.runtime.drive import TIMEOUT_S, Answer

SHOWN = 4  # values of each output in an answer's text
MOST_BYTES = 256 << 20  # of one input; a model that asks for more by its metadata is not asked
HEADER_LENGTH = "Inference-Header-Content-Length"
# struct's letters, little-endian. BF16 has none: the upper half of an FP32. BYTES: 4 bytes of length before each.
LETTERS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
Number = float | int | bool


@dataclass(frozen=True)
class Spec:
    """One input or output, as metadata says. shape: -1 for an open dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fixed(self, batch: int, tokens: int) -> tuple[int, ...]:
        """The shape, with its open dimensions filled.

        >>> Spec("ids", "INT64", (-1, -1)).fixed(4, 32), Spec("x", "FP32", (1, -1, 8)).fixed(4, 32)
        ((4, 32), (1, 32, 8))
        """
        return tuple(n if n >= 0 else tokens if i else batch for i, n in enumerate(self.shape))


@dataclass(frozen=True)
class Model:
    """A model's metadata."""

    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]

    @property
    def batches(self) -> bool:
        """Whether one request may hold several: every input's first dimension is open."""
        return all(spec.shape and spec.shape[0] < 0 for spec in self.inputs)


@dataclass(frozen=True)
class Tensor:
    """An output: its bytes, as the protocol lays them out."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def summary(self) -> dict[str, Any]:
        """What a person can compare: digest, and the first values where they are numbers."""
        said: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        if letter := LETTERS.get(self.datatype):
            size = struct.calcsize("<" + letter)
            first = self.data[: SHOWN * size]
            said["first"] = [_short(v) for v in struct.unpack(f"<{len(first) // size}{letter}", first)]
        return {**said, "sha256": hashlib.sha256(self.data).hexdigest()}


class Asker:
    """Asks one model, as `drive.ask` asks one that chats; its metadata is read once. batch: of every request."""

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self._model: Model | None = None

    def __call__(
        self, base_url: str, model: str, prompt: str, *, max_tokens: int = 1, timeout_s: float = TIMEOUT_S, seed: int = 0
    ) -> Answer:
        """The outputs in one line of JSON, with their digests. max_tokens, seed: without meaning here.

        Raises RemoteError as `drive.ask` does, ConfigError if the model's inputs cannot be made up.
        """
        known = self._model = self._model or metadata(base_url, model, timeout_s=timeout_s)
        inputs = prompt_inputs(known, prompt, batch=self.batch)
        started = time.monotonic()
        outputs = infer(base_url, model, inputs, timeout_s=timeout_s)
        seconds = time.monotonic() - started
        text = json.dumps([output.summary() for output in outputs]) if outputs else ""
        return Answer(text, seconds, seconds, self.batch if outputs else 0, len(prompt.split()), "stop")


def metadata(base_url: str, model: str, *, timeout_s: float = TIMEOUT_S) -> Model:
    """Raises RemoteError: no answer, a status other than 200, or not a model's metadata."""
    body, _ = _call(base_url, "GET", _path(model), None, {}, timeout_s)
    try:
        raw = json.loads(body)
        inputs = tuple(Spec(str(t["name"]), str(t["datatype"]), tuple(map(int, t["shape"]))) for t in raw["inputs"])
        return Model(inputs, tuple(str(t["name"]) for t in raw["outputs"]))
    except (ValueError, TypeError, KeyError) as exc:
        raise RemoteError(f"{base_url}: not the metadata of a model: {body[:200]!r}") from exc


def infer(
    base_url: str, model: str, inputs: Sequence[tuple[Spec, tuple[int, ...], bytes]], *, timeout_s: float
) -> list[Tensor]:
    """The model's outputs, in its order. inputs: with fixed shapes, and bytes. Raises RemoteError."""
    listed = [
        {"name": s.name, "datatype": s.datatype, "shape": list(shape), "parameters": {"binary_data_size": len(data)}}
        for s, shape, data in inputs
    ]
    header = json.dumps({"inputs": listed, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([header, *(data for _, _, data in inputs)])
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    answer, length = _call(base_url, "POST", _path(model) + "/infer", body, headers, timeout_s)
    try:
        return _outputs(answer, length)
    except (ValueError, TypeError, KeyError, struct.error) as exc:
        raise RemoteError(f"{base_url}: not an inference response: {answer[:200]!r}") from exc


def prompt_inputs(model: Model, prompt: str, *, batch: int = 1) -> list[tuple[Spec, tuple[int, ...], bytes]]:
    """Inputs for `model` that follow from the text alone. Raises ConfigError if its metadata asks for what cannot be made."""
    tokens = max(1, len(prompt.split()))
    return [(spec, shape, _made(spec, shape, prompt)) for spec in model.inputs for shape in [spec.fixed(batch, tokens)]]


def _made(spec: Spec, shape: tuple[int, ...], prompt: str) -> bytes:
    count = 1
    for n in shape:
        count *= n
    if spec.datatype == "BYTES":
        text = prompt.encode()
        return (struct.pack("<I", len(text)) + text) * count
    letter = "f" if spec.datatype == "BF16" else LETTERS.get(spec.datatype)
    if letter is None or count * struct.calcsize("<" + letter) > MOST_BYTES:
        raise ConfigError(
            f"input {spec.name}: {spec.datatype} of shape {list(shape)} cannot be made up; expected a known datatype, and at "
            f"most {MOST_BYTES >> 20} MiB",
            hint="shorten serve.warmup.tokens, or fix the model's dimensions",
        )
    packed = struct.pack(f"<{count}{letter}", *_values(spec, shape, count, random.Random(f"{spec.name}:{prompt}")))
    return packed if spec.datatype != "BF16" else b"".join(packed[i + 2 : i + 4] for i in range(0, len(packed), 4))


def _values(spec: Spec, shape: tuple[int, ...], count: int, draw: random.Random) -> Sequence[Number]:
    if spec.datatype == "BOOL":
        return [True] * count
    if "INT" not in spec.datatype:
        return [draw.random() for _ in range(count)]
    name = spec.name.lower()
    if "mask" in name:
        return [1] * count
    if "type" in name or "segment" in name:
        return [0] * count
    if "position" in name:
        return [i % shape[-1] for i in range(count)] if shape else [0]
    return [draw.randint(1, 99) for _ in range(count)]


def _outputs(answer: bytes, length: int | None) -> list[Tensor]:
    header = json.loads(answer[:length])
    at, found = length or 0, []
    for raw in header["outputs"]:
        shape, size = tuple(map(int, raw["shape"])), raw.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = json.dumps(raw["data"]).encode()
        else:
            data = answer[at : at + size]
            at += size
            if len(data) != size:
                raise ValueError(f"{raw['name']}: {len(data)} of {size} bytes")
        found.append(Tensor(str(raw["name"]), str(raw["datatype"]) if size is not None else "JSON", shape, data))
    return found


def _call(
    base_url: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
) -> tuple[bytes, int | None]:
    """The body of a 200, and how much of it is JSON (None: all). Raises RemoteError."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"{base_url!r} is not a server's address", hint="give it as http://host:port")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=timeout_s)
    try:
        connection.request(method, url.path.rstrip("/") + path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read()
        length = response.getheader(HEADER_LENGTH)
    except TimeoutError as exc:
        raise RemoteError(f"{base_url}: no complete answer within {timeout_s:.0f} s") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise RemoteError(f"{base_url}: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise RemoteError(f"{base_url}: HTTP {response.status} {_said(answer)}")
    return answer, int(length) if length and length.isdigit() else None


def _said(body: bytes) -> str:
    text = body[:4096].decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])[:200]
    except (ValueError, TypeError, KeyError):
        return " ".join(text.split())[:200]


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _short(value: Number) -> Number:
    return value if isinstance(value, int) else float(f"{value:.6g}")
