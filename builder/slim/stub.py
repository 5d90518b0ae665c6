"""A stub: a tiny library of our own in the place of one that is linked but not used.

It has the soname, the functions and the versions of the original, so the loader and every importer are satisfied, and so
is dlsym; a function that is called after all says what it was, what to take out of image.stubs, and aborts. Nothing of
the original is copied but names.

    function    a stub; an IFUNC too, as a plain function: nothing is left to choose between
    data, TLS   zeroed storage of the same size and alignment; several names of one place stay so
    left out    what belongs to others: symbols of the C++ runtime that a library carries along (a stub would take the place
                of the real ones for every library loaded later), inline C++ code, tables of C++ classes, the linker's own marks
    DT_NEEDED   none

A note in the file (.note.builder.stub) holds the original's name, size and sha256: that is how a stub is recognised.
Made with `as` and `ld` of binutils; the bytes depend on the original's symbols and sha256 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.slim import stub_code, stubs, symbols
from builder.slim.symbols import Library, Symbol

OWNER = "builder"
MAX_DATA = 1 << 30
"""Zeroed storage of one stub, in bytes. The libraries of stubs.py have 128 at most."""
RUNTIME_VERSIONS = re.compile(r"(GLIBCXX|CXXABI|GLIBC|GCC|LIBGOMP|GOMP|OMP)_.*")
LINKER = re.compile(r"_init|_fini|_start|_?edata|_?end|__end__|__data_start|__bss_start(__)?|__?bss_end__")
RUNTIME = re.compile(
    r"_Z(G[A-Za-z]+|T[hv][n0-9_]*|T[A-Z]|Z)*"  # guards, clones for transactions, thunks, tables, statics: of what follows
    r"(N[rVKRO]*)?(St|S[absiod]|9__gnu_cxx|10__cxxabiv1|n[wa]|d[la])"
    r"|(__cxa_|__gxx_|_Unwind_|__gcc_|__emutls|__dynamic_cast).*|__(mul|div|mod|fix|float|extend|trunc|add|sub)[a-z]+[0-9]"
)
"""The C++ ABI's abbreviations of std, and its name spaces (Itanium C++ ABI, 5.1.4); operators new and delete."""
RUNTIMES = "the C++ runtime's"
TABLES = re.compile(r"_ZT[VTISC]|_ZG")
WRITER_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """What a stub stands for. file: its name without folder.  name: as image.stubs has it."""

    file: str
    name: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Stubbed:
    """A library, before and after. bytes_before: of the original, also where the stub was there already.

    functions, data: how many symbols the stub has of each.  left_out: reason to names.  done: False where it was there already.
    """

    origin: Origin
    bytes_before: int
    bytes_after: int
    functions: int
    data: int
    left_out: dict[str, tuple[str, ...]]
    done: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.origin.file,
            "stub": self.origin.name,
            "sha256": self.origin.sha256,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "functions": self.functions,
            "data": self.data,
            "left_out": {reason: len(names) for reason, names in self.left_out.items()},
        }


def replace(path: Path, name: str) -> Stubbed:
    """Put a stub in the place of the library `path`, under the same name and with the same mode; atomic.

    name: of image.stubs, for the message. A stub that is there already stays as it is, byte for byte.
    Raises ConfigError for what is no shared object, IntegrityError for a damaged one, CapabilityError where binutils or
    the permission to write is missing; the file is then untouched.
    """
    (stub,) = stubs.chosen([name])
    if path.is_symlink() or not path.is_file():
        raise ConfigError(f"{path}: not a regular file, so no stub can take its place")
    library = symbols.read(path)
    there = origin(path)
    kept, left_out = sort_out(library, carries=stub.carries)
    if there is not None:
        return _stubbed(there, path, library.exports, {}, done=False)
    about = Origin(path.name, name, path.stat().st_size, _sha256(path))
    with tempfile.TemporaryDirectory(prefix="builder-stub-") as scratch:
        made = _made(library, about, kept, Path(scratch))
        _compare(made, library, kept)
        result = _stubbed(about, made, kept, left_out, done=True)
        _put(made, path)
    return result


def origin(path: Path) -> Origin | None:
    """What the stub `path` stands for, or None for a library that is none. Raises as symbols.read does."""
    for owner, kind, text in symbols.notes(path):
        if (owner, kind) == (OWNER, stub_code.NOTE_TYPE):
            try:
                return Origin(**json.loads(text))
            except (ValueError, TypeError) as exc:
                raise IntegrityError(f"{path}: a stub's note that cannot be read: {exc}") from exc
    return None


def is_stub(path: Path) -> bool:
    """Whether the shared object `path` is a stub. Raises as symbols.read does."""
    return origin(path) is not None


def sort_out(library: Library, *, carries: str = "") -> tuple[tuple[Symbol, ...], dict[str, tuple[str, ...]]]:
    """The symbols that a stub of the library has, sorted; and the names of the others by the reason why not.

    carries: regular expression of names that the library has of others.
    """
    nodes = {version.name for version in library.versions}
    kept: dict[str, Symbol] = {}
    left: dict[str, list[str]] = {}
    for symbol in sorted(library.exports, key=lambda one: one.text):
        if symbol.absolute and symbol.name in nodes:
            continue  # the name of a version: the linker's own entry
        reason = _reason(symbol) or ("others' code that it carries" if re.fullmatch(carries, symbol.name) else "")
        if reason:
            left.setdefault(reason, []).append(symbol.text)
        else:
            kept.setdefault(symbol.text, symbol)
    return tuple(kept.values()), {reason: tuple(names) for reason, names in sorted(left.items())}


def missing(original: Library, stub: Library, importers: Iterable[Library]) -> tuple[str, ...]:
    """What the importers take from the original by its symbols and versions, and would not find in the stub.

    Not counted is what the C++ runtime has itself.
    """
    had, has = _offers(one for one in original.exports if _reason(one) != RUNTIMES), _offers(stub.exports)
    lost = set()
    for importer in importers:
        for one in importer.imports:
            if one.file in ("", original.soname) and (one.name, one.version) in had - has:
                lost.add(f"{one.name}@{one.version}" if one.version else one.name)
    return tuple(sorted(lost))


def _offers(exports: Iterable[Symbol]) -> set[tuple[str, str]]:
    """What a reference may be bound to: a version by its name, or the name alone."""
    found: set[tuple[str, str]] = set()
    for symbol in exports:
        found |= {(symbol.name, symbol.version), (symbol.name, "")}
    return found


def _reason(symbol: Symbol) -> str:
    """Why a stub does not have it, or ""."""
    mangled = symbol.name.startswith("_Z")
    if LINKER.fullmatch(symbol.name):
        return "the linker's marks"
    if RUNTIME_VERSIONS.fullmatch(symbol.version) or RUNTIME.match(symbol.name):
        return RUNTIMES
    if TABLES.match(symbol.name):
        return "tables of C++ classes"
    if symbol.bind == "unique" or (mangled and symbol.bind == "weak"):
        return "inline C++ code"
    if symbol.absolute:
        return "numbers"
    return "" if stub_code.WRITABLE.fullmatch(symbol.name) else "names that no assembler takes"


def _stubbed(about: Origin, stub: Path, kept: Iterable[Symbol], left_out: dict[str, tuple[str, ...]], *, done: bool) -> Stubbed:
    kinds = [symbol.kind in ("function", "ifunc") for symbol in kept if not symbol.absolute]
    return Stubbed(about, about.size, stub.stat().st_size, sum(kinds), len(kinds) - sum(kinds), left_out, done)


def _made(library: Library, about: Origin, kept: tuple[Symbol, ...], scratch: Path) -> Path:
    for version in library.versions:
        _plain(about.file, "version", version.name)
    soname = library.soname or about.file
    _plain(about.file, "soname", soname)
    if sum(symbol.size for symbol in kept if symbol.kind not in ("function", "ifunc")) > MAX_DATA:
        raise IntegrityError(f"{about.file}: data symbols of more than {MAX_DATA} bytes")
    note = json.dumps(about.to_json(), sort_keys=True, separators=(",", ":")).encode()
    source = stub_code.assembler(library.machine, soname, about.name, kept, note)
    (scratch / "stub.s").write_text(source)
    _run(library.machine, "as", ["-o", "stub.o", "stub.s"], scratch)
    link = ["-shared", "-s", "-o", "stub.so", "--hash-style=gnu", "--build-id=none", "--no-undefined"]
    link += ["-z", "noseparate-code", "-z", "noexecstack", "-z", "text"]
    if library.soname:
        link += ["-soname", library.soname]
    if library.versions:
        (scratch / "stub.map").write_text(stub_code.version_script(library.versions))
        link += ["--version-script=stub.map"]
    _run(library.machine, "ld", [*link, "stub.o"], scratch)
    return scratch / "stub.so"


def _plain(file: str, what: str, name: str) -> None:
    """A name goes into the linker's and the assembler's text: nothing in it may mean anything there."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
        raise IntegrityError(f"{file}: {what} {name!r}: expected letters, digits and ._+-")


def _run(machine: str, program: str, arguments: list[str], scratch: Path) -> None:
    name = program if platform.machine() == machine else f"{machine}-linux-gnu-{program}"
    if shutil.which(name) is None:
        package = "binutils" if name == program else f"binutils-{machine.replace('_', '-')}-linux-gnu"
        raise CapabilityError(f"{name}: program not found; stubs are made with it", hint=f"apt-get install {package}")
    done = subprocess.run([name, *arguments], cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "".join(f"\n  {line}" for line in done.stderr.strip().splitlines()[-5:])
        raise BuilderError(f"{name} failed on the stub's source, with exit status {done.returncode}{said}")


def _compare(made: Path, original: Library, kept: tuple[Symbol, ...]) -> None:
    """The stub as it was written is what was meant: read back, symbol by symbol."""
    stub = symbols.read(made)
    found = {(one.text, _family(one), one.bind, one.protected) for one in sort_out(stub)[0]}
    meant = {(one.text, _family(one), one.bind, one.protected) for one in kept}
    wrong = sorted(one[0] for one in found ^ meant)
    if wrong or stub.soname != original.soname or stub.needed or stub.imports:
        raise BuilderError(f"{made.name}: not what was asked of the linker, first at {(wrong or [stub.soname])[0]}")
    nodes = {version.name: version.parents for version in stub.versions}
    if nodes != {version.name: version.parents for version in original.versions}:
        raise BuilderError(f"{made.name}: other versions than the original: {', '.join(nodes)}")


def _family(symbol: Symbol) -> tuple[str, int]:
    if symbol.kind in ("function", "ifunc"):
        return "function", 0
    return "tls" if symbol.kind == "tls" else "data", symbol.size


def _put(made: Path, path: Path) -> None:
    """Under a hidden name in the same folder, complete and on disk, then renamed."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.stub-", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(made.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            before = path.stat()
            part.chmod(before.st_mode & 0o7777)
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(part, before.st_uid, before.st_gid)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise CapabilityError(f"{path}: cannot be replaced: {exc.strerror}", hint="make its folder writable") from exc


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(WRITER_BLOCK):
            digest.update(block)
    return digest.hexdigest()
