"""A search for secrets in bytes that come in blocks: each is found once, wherever blocks end. Pure.

Speed: most bytes of an image are machine code, in which no secret's first letters occur. Every pattern marked `near` needs
a run of at least 20 characters that tokens are made of, and has its fixed part in that run or shortly before it. So the
runs are found first: one `translate` to two classes of bytes and one search for 20 of a class, both at memory speed. The
fixed parts are searched in the runs alone, by one expression, and a pattern is tried only where a fixed part stands.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from builder.errors import IntegrityError
from builder.image.patterns import PATTERNS, Pattern
from builder.image.stream import BLOCK, Reader

OVERLAP = 8192
"""Bytes of the last block that are searched again with the next: longer than any pattern's longest match."""
GIVEN = "given secret"
RUN = 20
HEAD = 65536
CONTEXT = 28
_WORD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/="
_CLASSES = bytes(65 if byte in _WORD else 0 for byte in range(256))

Found = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Hit:
    """start, end: in the bytes that were searched. value: the match itself; never shown. shown: its first letters.
    token: it is long and random."""

    kind: str
    start: int
    end: int
    value: bytes = field(repr=False)
    shown: bytes = b""
    token: bool = False

    @property
    def fingerprint(self) -> str:
        """Of a token, which cannot be guessed from it; "" for what has no form of its own, such as a password."""
        return hashlib.sha256(self.value).hexdigest()[:16] if self.token else ""

    @property
    def hint(self) -> str:
        """Enough of a secret to find it, not enough to use it."""
        return self.shown.decode("ascii", "replace") + "..." if self.shown else ""


class Search:
    """What to look for. extra: patterns on top of PATTERNS. given: byte strings, see `forms`. skip: kinds to leave out."""

    def __init__(self, extra: Sequence[Pattern] = (), given: Sequence[bytes] = (), skip: frozenset[str] = frozenset()) -> None:
        chosen = [one for one in (*PATTERNS, *extra) if one.kind not in skip]
        self.near = {part: one for one in chosen if one.near for part in one.fixed}
        self._parts = re.compile(either(self.near))
        self.always = [(part, one) for one in chosen if not one.near for part in one.fixed]
        self.forms = [form for one in given for form in forms(one)]
        self.overlap = max([OVERLAP, *(len(form) for form in self.forms)])

    def find(self, data: bytes) -> Iterator[Hit]:
        """Every match in `data`."""
        parts = [(part, self.near[part]) for part in set(self._parts.findall(runs(data)))]
        parts += [(part, one) for part, one in self.always if part in data]
        for part, one in parts:
            yield from _matches(data, part, one)
        for form in self.forms:
            at = data.find(form)
            while at >= 0:
                yield Hit(GIVEN, at, at + len(form), form)
                at = data.find(form, at + len(form))


class Feed:
    """A search through bytes that come in blocks: each match is told once, wherever blocks end."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._kept = b""

    def block(self, data: bytes, *, last: bool) -> Iterator[Hit]:
        whole = self._kept + data
        for hit in self.search.find(whole):
            # Up to its end the kept part was searched before; what ends there may go on in the new one.
            if hit.end >= len(self._kept) and (last or hit.end < len(whole)):
                yield hit
        self._kept = whole[-self.search.overlap :]

    def all(self, source: Reader) -> Iterator[Hit]:
        """Read `source` to its end."""
        return Tee(source, self).rest()


class Tee:
    """A Reader that searches what passes. Read in large blocks."""

    def __init__(self, source: Reader, feed: Feed) -> None:
        self.source = source
        self.feed = feed
        self.hits: list[Hit] = []
        self._held = b""  # the last block is searched when it is known whether another follows

    def read(self, size: int, /) -> bytes:
        data = self.source.read(size)
        if data:
            if self._held:
                self.hits += self.feed.block(self._held, last=False)
            self._held = data
        return data

    def rest(self) -> Iterator[Hit]:
        """Everything found, after reading to the end."""
        while self.read(BLOCK):
            yield from self.hits
            self.hits.clear()
        yield from self.hits
        if self._held:
            yield from self.feed.block(self._held, last=True)


class Pushed:
    """A Reader whose first bytes can be seen before they are read. head: 64 KiB, or all there is."""

    def __init__(self, source: Reader) -> None:
        self.source = source
        self.head = source.read(HEAD)
        self._left = self.head

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return self.source.read(size)
        data, self._left = self._left[:size], self._left[size:]
        return data


class Limit:
    """A limit on the bytes of several Readers together."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.source: Reader | None = None

    def of(self, source: Reader) -> Limit:
        """The next one to read from."""
        self.source = source
        return self

    def read(self, size: int, /) -> bytes:
        assert self.source is not None
        data = self.source.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise IntegrityError("holds more than is looked through")
        return data


def forms(secret: bytes) -> tuple[bytes, ...]:
    """`secret` as it is, in base64 wherever in an encoded text it may begin, and as URLs and JSON write it.

    >>> b"cGVuc2VzYW1l" in forms(b"pensesame")
    True
    """
    out = [secret]
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        first, last = (0, 2, 3)[shift], (shift + len(secret)) * 8 // 6  # characters that hold bits of the secret alone
        if last - first >= 8:  # fewer would match by chance
            piece = encoded[first:last]
            out += [piece, piece.translate(bytes.maketrans(b"+/", b"-_"))]
    out.append(urllib.parse.quote_from_bytes(secret, safe="").encode())
    out.append(json.dumps(secret.decode(errors="replace"))[1:-1].encode())
    return tuple(dict.fromkeys(form for form in out if form))


def hide(text: str, search: Search) -> str:
    """`text` with every match cut to its hint: a path or a history line that holds a secret is shown too."""
    data, out, at = text.encode(errors="replace"), b"", 0
    for hit in sorted(search.find(data), key=lambda one: (one.start, -one.end)):
        if hit.start >= at:
            out += data[at : hit.start] + (hit.hint or "(hidden)").encode()
            at = hit.end
    return (out + data[at:]).decode(errors="replace")


def runs(data: bytes) -> bytes:
    """Every run of RUN or more characters of tokens, with CONTEXT bytes before it, joined by line breaks."""
    classes = data.translate(_CLASSES)
    needle, find, out, at = b"A" * RUN, classes.find, [], 0
    while (at := find(needle, at)) >= 0:
        end = find(b"\0", at + RUN)
        if end < 0:
            end = len(data)
        out.append(data[at - CONTEXT if at > CONTEXT else 0 : end])
        at = end
    return b"\n".join(out)


def either(words: Iterable[bytes]) -> bytes:
    """A regular expression for any of `words`, none of which begins another: by first letters, so that each is read once.

    >>> either([b"ghp_", b"gho_", b"sk-"])
    b'(?:gh(?:o_|p_)|sk\\\\-)'
    """
    rests: dict[bytes, list[bytes]] = {}
    for word in sorted(words):
        rests.setdefault(word[:1], []).append(word[1:])
    parts = [re.escape(first) + (either(rest) if any(rest) else b"") for first, rest in rests.items()]
    return parts[0] if len(parts) == 1 else b"(?:" + b"|".join(parts) + b")"


def _matches(data: bytes, part: bytes, one: Pattern) -> Iterator[Hit]:
    at = data.find(part)
    while at >= 0:
        match = one.regex.match(data, at)
        if match and (not one.varied or len(set(match[0][len(part) :])) >= 4):
            yield Hit(one.kind, at, match.end(), match[0], match[0][: min(len(part) + 2, 6)], not one.guessable)
        at = data.find(part, at + len(part))
