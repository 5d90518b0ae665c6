"""Mutation fuzzing of everything that reads bytes from elsewhere. Guided by coverage when it runs by itself:

    python -m tests.fuzz [--seconds 60] [--target safetensors] [--seed 0] [--keep FOLDER]

A target takes bytes and either returns or raises IntegrityError; what it returns is checked again here, by other code. Any
other exception, a wrong answer, a second of CPU or an absurd allocation is a finding: it is written to --keep, and belongs
into tests/corpus/<target>/ together with its fix. The corpus also seeds the mutations.

The unit tests run the same targets and mutations, drawn by hypothesis, without guidance and for seconds only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import posixpath
import random
import re
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from builder.errors import BuilderError, IntegrityError
from builder.format import gguf, manifest, safetensors
from builder.format.volume import MARKER, marker_digest
from builder.slim import prune
from builder.slim.chips import Chip
from builder.transfer.journal import Journal
from builder.weights import sign
from tests.attacks import hostile

CORPUS = Path(__file__).parent / "corpus"
DIGEST = "sha256:" + "0" * 64
CPU_S = 2.0
MEMORY_FACTOR, MEMORY_BYTES = 64, 8 << 20  # parsed JSON takes up to some 40 times its text; and a constant
MAX_MESSAGE = 1500  # characters, above the input itself where that is one object of a store
INTEGERS = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 255, 256, 4095, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
            1 << 32, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
VALUES: list[Any] = [
    *INTEGERS, *[-n for n in INTEGERS], 1 << 200, 10**4000, 0.0, 1.5, 1e300, True, False, None, "", "a", "x" * 5000, "\ud800",
    "\0", "../a", "/a", "a/b", ".", "a\nb", "\x1b[2J", "é", "e\u0301", ".builder/x", [], [[]], {}, {"a": 1}, [0, 0],
    [1 << 62] * 64, "F4", "BF16", "raw", "gguf",
]  # fmt: skip


class Finding(AssertionError):
    """What a target did that it must not do."""


class File:
    """Bytes as a file; a read outside them is a finding."""

    def __init__(self, body: bytes) -> None:
        self.body, self.read_bytes = body, 0

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.body):
            raise Finding(f"read of [{offset}, {offset + size}) in a file of {len(self.body)}")
        self.read_bytes += size
        return self.body[offset : offset + size]


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def into_manifest(header: safetensors.Header | gguf.Header, size: int) -> None:
    """What a header parser takes, the manifest takes: a push must not make what no pull can read."""
    made = manifest.File("f", size, "0" * 64, "0" * 16, "raw", 0, (), header.tensors)
    for t in made.tensors:
        manifest._tensor(t.name, manifest._file_json(made)["tensors"][t.name], size)
        t.name.encode()  # a file name, a terminal, a database: none takes half a surrogate pair
    require(len({t.name for t in header.tensors}) == len(header.tensors), "a name twice")
    require(all(0 <= n < 1 << 63 for t in header.tensors for n in t.shape), "a shape that no 64-bit integer holds")


def fuzz_safetensors(body: bytes) -> None:
    file = File(body)
    header = safetensors.parse(file.read, len(body), path="f")
    require(file.read_bytes <= header.size + 64, f"{file.read_bytes} bytes read for a header of {header.size}")
    at = header.size
    for t in header.tensors:
        require(t.offset == at, f"{t.name!r} starts at {t.offset}, not {at}")
        at += t.size
        require(t.size == 0 or 0 < t.row_bytes <= t.size, f"row of {t.row_bytes} bytes in {t.size}")
    require(at == len(body), f"tensors end at {at} of {len(body)}")
    require(body[8:9] == b"{", "the header does not start with {")  # the README's rule
    into_manifest(header, len(body))


def fuzz_gguf(body: bytes) -> None:
    file = File(body)
    header = gguf.parse(file.read, len(body), path="f")
    require(header.size <= len(body), f"header of {header.size} in {len(body)} bytes")
    at = header.size
    for t in header.tensors:
        require(t.offset >= at, f"{t.name!r} starts at {t.offset}, before {at}")
        require((t.offset - header.size) % header.alignment == 0, f"{t.name!r} is not aligned")
        at = t.offset + t.size
    require(at <= len(body), f"tensors end at {at} of {len(body)}")
    into_manifest(header, len(body))


def fuzz_manifest(body: bytes) -> None:
    found = manifest.parse(body, at="store/x")
    require(found.to_bytes() == body, "not the same text again")
    require(found.digest == "sha256:" + hashlib.sha256(body).hexdigest(), "another digest")
    for f in found.files:
        require(posixpath.normpath(f"/root/{f.path}") == f"/root/{f.path}", f"path {f.path!r} leaves its folder")
        at = 0
        for c in f.chunks:
            require(c.offset == at and 0 < c.size <= manifest.MAX_CHUNK_BYTES, f"chunk at {c.offset}, not {at}")
            at += c.size
        require(at == f.size, "a file that is not covered")
    require({c.sha256 for _, c in found.chunks()} == set(found.order), "order")


def fuzz_sig(body: bytes) -> None:
    found = sign.parse(body, at="store/x", digest=DIGEST)
    require(found.to_bytes() == body and found.digest == DIGEST, "not the same text again")
    require(len(found.signatures) <= sign.MAX_SIGNATURES, "too many")


def fuzz_journal(body: bytes) -> None:
    """A journal of any bytes opens, names only digests that stand in it as whole lines, and takes new records."""
    with tempfile.TemporaryDirectory(prefix="builder-fuzz-") as folder:
        path = Path(folder) / "journal"
        path.write_bytes(body)
        journal = Journal(path, DIGEST)
        journal.record("1" * 64)
        journal.close()
        require(all(name.encode() + b"\n" in body for name in journal.recorded), "a record that is not there")
        again = Journal(path, DIGEST)
        again.close()
        require(again.recorded == journal.recorded | {"1" * 64}, "a record was lost")


def fuzz_marker(body: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="builder-fuzz-") as folder:
        path = Path(folder) / MARKER
        path.parent.mkdir()
        path.write_bytes(body)
        found = marker_digest(Path(folder))
        require(found is None or (manifest.is_digest(found) and found.encode() in body), f"marker {found!r}")


def fuzz_shared_object(body: bytes) -> None:
    """A library of any bytes is pruned or left; it is only read, and what comes out holds what it held for the chip."""
    with tempfile.TemporaryDirectory(prefix="builder-fuzz-") as folder:
        path, target = Path(folder) / "lib.so", Path(folder) / "out.so"
        path.write_bytes(body)
        result = prune.prune(path, target, [Chip(9, 0)])  # which reads its result again and compares
        require(path.read_bytes() == body, "the source was changed")
        require(target.exists() == (result.status == "pruned"), f"a target, and {result.status}")
        if result.status == "left":
            raise IntegrityError(f"f: {result.reason}")
        if result.status == "pruned":
            require(target.stat().st_size == result.size_after <= len(body), f"{result.size_after} bytes of {len(body)}")
            require("sm_80" not in (result.after or {}), "code for another chip")
            require(prune.prune(target, None, [Chip(9, 0)]).status == "nothing-to-drop", "pruned twice")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "safetensors": fuzz_safetensors,
    "gguf": fuzz_gguf,
    "manifest": fuzz_manifest,
    "sig": fuzz_sig,
    "journal": fuzz_journal,
    "marker": fuzz_marker,
    "shared_object": fuzz_shared_object,
}


def check(target: str, body: bytes, *, memory: bool = False) -> bool:
    """Run one input; True if it was taken, False if it was refused. Raises Finding.  memory: bound it too (slower)."""
    start = time.process_time()
    if memory:
        tracemalloc.start()
    try:
        TARGETS[target](body)
        taken = True
    except IntegrityError as exc:
        taken = False
        room = MAX_MESSAGE + (2 * len(body) if target == "manifest" else 0)
        require(len(exc.message) <= room, f"a message of {len(exc.message)} characters")
        require(exc.message.startswith(("f: ", "store/x: ")), f"a message that does not say where: {exc.message[:80]}")
        json.dumps(exc.to_json())
    except (Finding, KeyboardInterrupt):
        raise
    except BaseException as exc:  # whatever it is, that is the finding
        raise Finding(f"{type(exc).__name__}: {exc}"[:500]) from exc
    finally:
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
        if memory:
            tracemalloc.stop()
    took = time.process_time() - start
    require(took < CPU_S * (5 if memory else 1), f"{took:.1f} s for {len(body)} bytes")
    require(peak < MEMORY_FACTOR * len(body) + MEMORY_BYTES, f"{peak} bytes of memory for {len(body)}")
    return taken


def corpus(target: str) -> dict[str, bytes]:
    """Seeds by name: the files of the corpus, and for the formats that have them the attacks of tests/attacks."""
    found = {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}
    attacks = {"safetensors": hostile.SAFETENSORS, "gguf": hostile.GGUF, "manifest": hostile.MANIFESTS}.get(target, {})
    return found | {f"attack-{name}": body for name, (body, _) in attacks.items() if len(body) < 10_000}


def mutate(target: str, body: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """`body` with one to four changes: of its JSON tree where it has one, or of its bytes."""
    for _ in range(draw.choice([1, 1, 1, 2, 3, 4])):
        body = _mutate_json(target, body, draw) if draw.random() < 0.7 else _mutate_bytes(body, draw, others)
    return body[: 1 << 16]


def _mutate_bytes(body: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    out = bytearray(body)
    at = draw.randrange(len(out) + 1)
    match draw.randrange(7):
        case 0 if out:
            out[at % len(out)] ^= 1 << draw.randrange(8)
        case 1:
            form = draw.choice(["<B", "<H", "<I", "<Q", ">I", ">Q"])
            value = draw.choice(INTEGERS) & ((1 << (8 * struct.calcsize(form))) - 1)
            out[at : at + struct.calcsize(form)] = struct.pack(form, value)
        case 2:
            del out[at : at + draw.choice([1, 2, 4, 8, 64])]
        case 3:
            out[at:at] = draw.randbytes(draw.choice([1, 4, 8]))
        case 4:
            out[at:at] = out[at : at + draw.choice([1, 8, 12, 13, 24, 32])] * draw.choice([1, 2, 9])
        case 5:
            del out[at:]
        case 6 if others:
            other = draw.choice(others)
            out[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(out)


def _mutate_json(target: str, body: bytes, draw: random.Random) -> bytes:
    text = body[8:] if target == "safetensors" else body
    try:
        tree, used = json.JSONDecoder().raw_decode(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return _mutate_bytes(body, draw, [])
    tree = _change(tree, draw)
    compact = json.dumps(tree, sort_keys=target != "safetensors", separators=(",", ":")).encode()
    if target != "safetensors":
        return compact
    pad = draw.choice([b"", b"", b"", b" ", b"\n\t ", b"\0"])
    return struct.pack("<Q", len(compact) + len(pad)) + compact + pad + text[used:]


def _change(tree: Any, draw: random.Random) -> Any:
    """One value, somewhere in the tree, replaced, removed, doubled or renamed."""
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.08:
        near = [tree + 1, tree - 1, tree * 2] if type(tree) is int else []
        return draw.choice(near) if near and draw.random() < 0.5 else draw.choice(VALUES)
    if isinstance(tree, list):
        at = draw.randrange(len(tree))
        match draw.randrange(6):
            case 0:
                return tree[:at] + tree[at + 1 :]
            case 1:
                return [*tree, tree[at]]
            case 2:
                other = draw.randrange(len(tree))
                return [tree[other] if i == at else tree[at] if i == other else value for i, value in enumerate(tree)]
            case _:
                return [_change(value, draw) if i == at else value for i, value in enumerate(tree)]
    key = draw.choice(list(tree))
    match draw.randrange(7):
        case 0:
            return {k: v for k, v in tree.items() if k != key}
        case 1:
            return {**tree, draw.choice([k for k in VALUES if isinstance(k, str)]): tree[key]}
        case _:
            return {k: _change(v, draw) if k == key else v for k, v in tree.items()}


class _Edges:
    """Pairs of lines that follow each other inside builder/; new ones mean an input worth keeping."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()
        self.fresh = False

    def call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        return self._tracer(name) if "/builder/" in name else None

    def _tracer(self, name: str) -> Any:
        last = 0

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            edge = (name, last, frame.f_lineno)
            last = frame.f_lineno
            if edge not in self.seen:
                self.seen.add(edge)
                self.fresh = True
            return line

        return line


def hunt(target: str, *, seconds: float, seed: int, keep: Path) -> tuple[int, int, list[str]]:
    """Mutate and run until the time is over. (inputs, edges reached, findings)."""
    draw, edges = random.Random(seed), _Edges()
    pool = list(corpus(target).values())
    found: dict[str, str] = {}
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        body = pool[count] if count < len(pool) else mutate(target, draw.choice(pool), draw, pool)
        count, edges.fresh = count + 1, False
        sys.settrace(edges.call)
        try:
            check(target, body)
        except Finding as exc:
            sys.settrace(None)
            kind = re.sub(r"\d+|'.*'", "N", str(exc))[:60]  # one of each kind is enough
            if kind not in found:
                path = keep / f"{target}-{hashlib.sha256(body).hexdigest()[:12]}"
                path.write_bytes(body)
                found[kind] = f"{path}: {exc}"
        finally:
            sys.settrace(None)
        if edges.fresh and count > len(pool):
            pool.append(body)
    return count, len(edges.seen), list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided mutation fuzzing.")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for findings")
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    bad = 0
    for target in TARGETS if asked.target == "all" else [asked.target]:
        inputs, edges, findings = hunt(target, seconds=asked.seconds, seed=asked.seed, keep=asked.keep)
        sys.stdout.write(f"{target}: {inputs} inputs, {edges} edges, {len(findings)} findings\n")
        sys.stdout.writelines(f"  {finding}\n" for finding in findings)
        bad += len(findings)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BuilderError as exc:
        sys.exit(str(exc))
