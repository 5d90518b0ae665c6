"""A captured compile cache: what an engine compiled at run time, and the chip and stack that it is right for.

    fingerprint.json   {"about": {...}, "fields": {...}, "files": sha256 of files.json, "format": 1}
    files.json         [[path, size, sha256, mtime_ns], ...] by path
    files.tar          those files, in that order, and nothing else

All JSON is canonical (sorted keys, no spaces, ASCII). The key of a cache is the sha256 of its `fields`: equal stacks have
equal keys. `about` says where and when it was taken, and is compared with nothing: the image's digest is there, for an image
that has its cache baked in has another digest than the one that the cache was captured from.

A cache root (BUILDER_COMPILE_CACHE_ROOT) holds `.builder/fingerprint.json` beside the engines' folders, with "files" empty: the
runtime writes it before it starts the engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from builder.errors import BuilderError, IntegrityError
from builder.format import secret
from builder.format.manifest import RESERVED, safe_path

FORMAT = 1
ROOT = "/opt/cache"  # the cache root of every image
FINGERPRINT, FILES, TAR = "fingerprint.json", "files.json", "files.tar"
ALL = (FINGERPRINT, FILES, TAR)
IN_ROOT = f"{RESERVED}/{FINGERPRINT}"
MAX_JSON_BYTES = 64 << 20
MAX_FINGERPRINT_BYTES = 1 << 20
KEY_CHARS = 16
_HEX = re.compile(r"[0-9a-f]{64}\Z")
CAPTURE_AGAIN = "capture it again: builder cache capture"


class Entry(NamedTuple):
    """One file. path: below the cache root, with "/".  size: bytes.  mtime_ns: 0 where no engine looks at it."""

    path: str
    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Fingerprint:
    """fields: what must be the same where the cache is used.  about: where it came from.  files: digest of files.json."""

    fields: Mapping[str, str]
    about: Mapping[str, str] = field(default_factory=dict)
    files: str = ""

    @property
    def key(self) -> str:
        """Hex sha256 of the fields."""
        return hashlib.sha256(canonical(dict(self.fields))).hexdigest()

    @property
    def short(self) -> str:
        return self.key[:KEY_CHARS]

    def differences(self, here: Fingerprint) -> list[str]:
        """Each field in which the cache (self) is not for the stack `here`, with both values but no secret.

        >>> Fingerprint({"driver": "570.1", "x": "1"}).differences(Fingerprint({"driver": "580.2", "x": "1"}))
        ['driver: captured with 570.1, here 580.2']
        """
        names = sorted({*self.fields, *here.fields})
        pairs = [(name, self.fields.get(name, ""), here.fields.get(name, "")) for name in names]
        return [_difference(name, was, now) for name, was, now in pairs if was != now]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "fields": dict(self.fields), "about": dict(self.about), "files": self.files}

    def to_bytes(self) -> bytes:
        return canonical(self.to_json())


def _difference(name: str, was: str, now: str) -> str:
    """A cache may be older than the rules of what is hidden when it is captured, so they are applied again."""
    before, after = (" ".join(secret.hidden(value.split(" "))) for value in (was, now))
    if secret.is_name(name) or before == after:
        return f"{name}: captured with another value, that is not shown"
    return f"{name}: captured with {before or 'none'}, here {after or 'none'}"


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def parse_fingerprint(body: bytes, at: str) -> Fingerprint:
    """The fingerprint in `body`. at: where it came from, for messages. Raises IntegrityError."""
    raw = _json(body, at)
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise _wrong(at, "not the fingerprint of a compile cache")
    if raw["format"] != FORMAT:
        raise _wrong(at, f"has format {raw['format']}, this builder reads {FORMAT}")
    fields, about, files = raw.get("fields"), raw.get("about"), raw.get("files")
    if set(raw) != {"format", "fields", "about", "files"} or not fields:
        raise _wrong(at, "expected fields, about and files, and nothing else")
    if not isinstance(files, str) or (files and not _HEX.match(files)):
        raise _wrong(at, f"files: expected 64 hex digits, found {str(files)[:80]!r}")
    return Fingerprint(_texts(fields, at), _texts(about, at), files)


def files_bytes(entries: list[Entry]) -> bytes:
    """The text of files.json."""
    return canonical([list(entry) for entry in entries])


def parse_files(body: bytes, at: str, digest: str) -> list[Entry]:
    """The entries in files.json. digest: what fingerprint.json says. Raises IntegrityError, also for unsafe paths."""
    found = hashlib.sha256(body).hexdigest()
    if found != digest:
        raise _wrong(at, f"is sha256 {found}, expected {digest}")
    raw = _json(body, at)
    try:
        entries = [_entry(item) for item in raw]
    except (TypeError, ValueError) as exc:
        raise _wrong(at, str(exc)) from exc
    names = [entry.path for entry in entries]
    if names != sorted(set(names)):
        raise _wrong(at, "the paths are not in order, or one is there twice")
    return entries


def _entry(item: Any) -> Entry:
    path, size, sha256, mtime_ns = item
    if not (type(size) is int and type(mtime_ns) is int and 0 <= size < 1 << 63 and 0 <= mtime_ns < 1 << 63):
        raise ValueError(f"{str(path)[:200]!r}: size and mtime_ns are not whole numbers")
    if not (isinstance(sha256, str) and _HEX.match(sha256)):
        raise ValueError(f"{str(path)[:200]!r}: not a sha256")
    return Entry(safe_path(path), size, sha256, mtime_ns)


def _json(body: bytes, at: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _wrong(at, f"not JSON: {str(exc)[:200]}") from exc


def _texts(value: object, at: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _wrong(at, "fields and about: expected texts by name")
    return value


def _wrong(at: str, what: str) -> BuilderError:
    return IntegrityError(f"{at}: {what}", hint=CAPTURE_AGAIN, where={"file": at})
