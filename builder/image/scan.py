"""Whether an image holds a secret or a model's weights: in any layer, its history, its configuration, or a file name.

A file that a later layer deletes is still in its layer, and is found there. Archives in a layer (zip, and so wheels; tar;
gzip, zstd, bzip2, xz) are opened, one level deep. What is not looked into: archives in archives, encrypted zips, zips over
1 GiB (their raw bytes are searched), secrets in UTF-16, and secrets without a form of their own unless they are given.
"""

from __future__ import annotations

import base64
import binascii
import lzma
import re
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from builder.errors import IntegrityError
from builder.image import magic, patterns
from builder.image.archive import Archive, Blob, open_image, short
from builder.image.dockerfile import SECRET_NAME
from builder.image.finding import Finding, ScanReport
from builder.image.search import Feed, Found, Hit, Limit, Pushed, Search, Tee, hide
from builder.image.stream import BLOCK, Member, Reader, Stream, compression, is_tar, members
from builder.progress import NoProgress, Progress
from builder.units import format_size

SETTINGS_BYTES = 1 << 20
ZIP_BYTES = 1 << 30
INNER_BYTES = 8 << 30
"""Of one archive in a layer, this much is unpacked: a zip of 10 MB can claim to hold 281 TB."""
_EVERYWHERE = (patterns.ADDRESS, *patterns.REGISTRY, patterns.NPM, patterns.KUBECONFIG)
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
# NAME=VALUE in a line of history: not a reference, a path, a number or a switch.
_ASSIGNED = re.compile(
    r"(?P<before>^|[\s|;&])(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?![\"']?(?:[/.\d]+|true|false|none|null)?[\"']?(?:\s|$|/))"
    r"[\"']?[^\s\"'$]{4,}", re.I
)  # fmt: skip
_TEST_KEYS = re.compile(r"/(site|dist)-packages/(.+/)?tests?/")


def scan(
    archive: Path, *, also: Sequence[bytes] = (), allow: Collection[str] = (), progress: Progress | None = None
) -> list[Finding]:
    """Secrets and weights in the image `archive`, a file or a folder. See `scan_image`."""
    return list(scan_image(archive, str(archive), also=also, allow=allow, progress=progress).findings)


def scan_image(
    path: Path,
    reference: str,
    *,
    platform: str = "",
    also: Sequence[bytes] = (),
    allow: Collection[str] = (),
    progress: Progress | None = None,
) -> ScanReport:
    """Everything that the image holds, searched once.

    also: byte strings that must occur nowhere, as they are or in base64, URL or JSON form.  allow: fingerprints of tokens
    that are public, beside those in patterns.KNOWN.
    Raises IntegrityError for a layer that cannot be read: what is not read is not proven.
    """
    with open_image(path, platform) as image:
        state = _Scan(image, [one for one in also if one], patterns.KNOWN | frozenset(allow))
        task = (progress := progress or NoProgress()).add(
            "image: scan for secrets and weights", sum(blob.size for blob in image.layers)
        )
        try:
            state.documents()
            for blob in image.layers:
                state.layer(blob)
                progress.advance(task, blob.size)
        finally:
            progress.done(task)
        found, unread = tuple(dict.fromkeys(state.findings)), tuple(state.unread)
        return ScanReport(
            reference, image.digest, image.platform, image.others, len(image.layers), state.files, state.size, found, unread
        )


class _Scan:
    """One pass over an image."""

    def __init__(self, image: Archive, also: Sequence[bytes], allow: frozenset[str]) -> None:
        self.image = image
        self.allow = allow
        self.also = also
        self.words = Search(_EVERYWHERE, also)
        self.plain = Search((), also)
        self.searches: dict[tuple[tuple[patterns.Pattern, ...], frozenset[str]], Search] = {((), frozenset()): self.plain}
        self.findings: list[Finding] = []
        self.unread: list[str] = []
        self.files = self.size = 0
        self.blob: Blob | None = None
        self.line = ""

    def documents(self) -> None:
        """Configuration, history, manifests, annotations, and what was attested to the image."""
        for keys, value in _strings(self.image.config):
            self._words(_place(keys), value)
        for _, text in self.image.texts:
            for keys, value in _strings(text):
                self._words("annotation" if "annotations" in keys else "configuration", value)
        for setting in (self.image.config.get("config") or {}).get("Env") or ():
            name, _, value = str(setting).partition("=")
            if value and SECRET_NAME.search(name):
                self._add("variable named like a secret", "environment", name)
        for name in self.image.beside:
            with self.image.open(name) as stream:
                for hit in Feed(self.words).all(stream):
                    self._hit(hit, "attestation")

    def layer(self, blob: Blob) -> None:
        self.blob, self.line = blob, public_line(short(blob.made_by), self.words)
        with self.image.layer(blob) as stream:
            for member in members(stream, stream.where):
                self.files += member.kind == "file"
                self.size += member.size
                self._names(member.name, member)
                self._file(member.name, member, member.size, set())
            self._told("(behind the end of the tar)", set(), Feed(self.plain).all(stream))

    def _words(self, place: str, text: str) -> None:
        """A string of a document: as it is, what it holds in base64, and what it assigns."""
        for hit in self.words.find(text.encode(errors="replace")):
            self._hit(hit, place)
        for match in _BASE64.finditer(text):
            for hit in self.plain.find(_decoded(match[0])):
                self._hit(hit, place, form=", in base64")
        if place in ("history", "entrypoint", "command"):
            for match in _ASSIGNED.finditer(text):
                if SECRET_NAME.search(match["name"]):
                    self._add("variable named like a secret", place, match["name"])

    def _names(self, path: str, member: Member) -> None:
        names = f"{member.name}\n{member.link}\n".encode(errors="replace")
        for hit in self.plain.find(names + member.extra):
            self._hit(hit, "file name" if hit.start < len(names) else "attributes of a file", path)

    def _file(self, name: str, source: Reader, size: int, known: set[Found], *, deep: bool = True) -> None:
        """One file, and where `deep` what is packed in it. known: what was found in it already; grows."""
        pushed = Pushed(source)
        if not pushed.head:
            return
        if kind := magic.weights(name, pushed.head, size):
            self._add("model weights", "layer", f"{kind}, {format_size(size)}", name)
        if magic.CREDENTIALS.search(name):
            self._add("file that holds credentials", "layer", "", name)
        tee = Tee(pushed, Feed(self._search(name, pushed.head, size)))
        if deep:
            self._inner(name, pushed.head, size, tee, known)
        own = known if deep else set()  # what is in several members is told of each; of the archive's raw bytes no more
        self._told(name, own, tee.rest())
        known |= own

    def _search(self, name: str, head: bytes, size: int) -> Search:
        """The patterns for a file of this name and kind."""
        extra = list(magic.settings(name, head)) if size <= SETTINGS_BYTES else []
        # TLS libraries carry the keys of their own self-tests (libgnutls: five); so do packages in their folders of tests.
        public = head.startswith(b"\x7fELF") or _TEST_KEYS.search("/" + name)
        # A wheel's RECORD lists digests in base64, which may begin with or hold "sk-".
        without = frozenset({"private key"} if public else {"API key"} if name.endswith(".dist-info/RECORD") else ())
        key = (tuple(extra), without)
        if key not in self.searches:
            self.searches[key] = Search(extra, self.also, without)
        return self.searches[key]

    def _inner(self, name: str, head: bytes, size: int, tee: Tee, known: set[Found]) -> None:
        """The members of an archive, or what is compressed. Damage is told, and no reason to fail: its bytes are searched."""
        limit = Limit(INNER_BYTES)
        try:
            if head.startswith(b"PK\x03\x04") and size <= ZIP_BYTES:
                self._zip(name, tee, limit, known)
            elif compression(head) or is_tar(head):
                stream = Stream(tee, name)
                inner = Pushed(limit.of(stream))
                if is_tar(inner.head):
                    for member in members(inner, name):
                        self._names(f"{name}!{member.name}", member)
                        self._file(f"{name}!{member.name}", member, member.size, known, deep=False)
                elif stream.compression:
                    self._file(f"{name}!", inner, max(size, len(inner.head)), known, deep=False)
        except IntegrityError as exc:
            self._unread(name, exc.message)

    def _zip(self, name: str, tee: Tee, limit: Limit, known: set[Found]) -> None:
        with tempfile.SpooledTemporaryFile(max_size=16 << 20, prefix="builder-scan-") as spool:
            while data := tee.read(BLOCK):
                spool.write(data)
            try:
                opened = zipfile.ZipFile(spool)
            except _DAMAGE as exc:
                raise IntegrityError(str(exc)) from exc
            for info in opened.infolist():
                try:
                    with opened.open(info) as file:
                        self._file(f"{name}!{info.filename}", limit.of(file), info.file_size, known, deep=False)
                except _DAMAGE as exc:
                    self._unread(f"{name}!{info.filename}", str(exc))

    def _told(self, name: str, known: set[Found], hits: Iterator[Hit]) -> None:
        for hit in hits:
            if (hit.kind, hit.value) not in known:
                known.add((hit.kind, hit.value))
                self._hit(hit, "layer", name)

    def _unread(self, name: str, why: str) -> None:
        self.unread.append(hide(f"/{name}: {why.removeprefix(f'{name}: ')}", self.words))

    def _hit(self, hit: Hit, place: str, path: str = "", *, form: str = "") -> None:
        if hit.fingerprint not in self.allow:
            self._add(hit.kind + form, place, hit.hint, path, hit.fingerprint)

    def _add(self, kind: str, place: str, detail: str = "", path: str = "", fingerprint: str = "") -> None:
        digest = self.blob.digest if self.blob else ""
        self.findings.append(Finding(kind, place, detail, digest, hide(path, self.words), self.line, fingerprint))


PUBLIC = Search(_EVERYWHERE)
"""For texts that are shown."""


def public_line(line: str, search: Search) -> str:
    """A line of history without the secrets in it."""
    return _ASSIGNED.sub(
        lambda m: f"{m['before']}{m['name']}=(hidden)" if SECRET_NAME.search(m["name"]) else m[0], hide(line, search)
    )


def _strings(raw: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a JSON document with the keys that lead to it; the keys themselves too."""
    if isinstance(raw, str):
        yield keys, raw
    elif isinstance(raw, list):
        for one in raw:
            yield from _strings(one, keys)
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield (*keys, key), key
            yield from _strings(value, (*keys, key))


def _place(keys: tuple[str, ...]) -> str:
    """Where in the configuration of an image, in words."""
    names = {"Env": "environment", "Labels": "label", "Entrypoint": "entrypoint", "Cmd": "command"}
    if keys[:1] == ("history",):
        return "history"
    return names.get(keys[1], "configuration") if keys[:1] == ("config",) and len(keys) > 1 else "configuration"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.translate({45: "+", 95: "/"}).rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
    except (binascii.Error, ValueError):
        return b""
