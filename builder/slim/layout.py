"""A new file as a list of pieces of an old one: copied from there, or zero; then words that are written over."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from builder.slim.elf import Source

BLOCK = 1 << 20
Edit = tuple[int, int, Sequence[tuple[int, int]]]
"""Bytes `begin` to `end` of the old file, and the ranges of it that stand there instead, one after another, then zeros."""


class Mismatch(Exception):
    """A written file is not what it should be: a fault of this program or of the disk."""


@dataclass(frozen=True)
class Piece:
    """size bytes of the new file. source: where they begin in the old one; None: zeros, which take no space on disk."""

    source: int | None
    size: int


@dataclass
class Layout:
    """words: offset in the new file, and the bytes to write there at the end."""

    pieces: list[Piece] = field(default_factory=list)
    words: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0

    def copy(self, begin: int, end: int) -> None:
        """Add the old file's bytes from `begin` to `end`."""
        self._add(Piece(begin, end - begin))

    def zero(self, size: int) -> None:
        self._add(Piece(None, size))

    def _add(self, piece: Piece) -> None:
        if piece.size < 0:
            raise ValueError(f"a piece of {piece.size} bytes")
        if piece.size:
            self.pieces.append(piece)
            self.size += piece.size

    @property
    def zeros(self) -> int:
        return sum(piece.size for piece in self.pieces if piece.source is None)

    def edited(self, edits: Sequence[Edit], words: Mapping[int, bytes]) -> Layout:
        """This layout with `edits` in it, in order of their beginnings; words: by place in the old file.

        Each edit and each word lies within one copied piece. Raises ValueError if not, for then bytes would be lost.
        """
        made, todo, wanted = Layout(), list(reversed(edits)), sorted(words)
        for piece in self.pieces:
            if piece.source is None:
                made.zero(piece.size)
                continue
            begin, end = piece.source, piece.source + piece.size
            for at in wanted[bisect.bisect_left(wanted, begin) : bisect.bisect_left(wanted, end)]:
                made.words.append((made.size + at - begin, words[at]))
            while todo and begin <= todo[-1][0] and todo[-1][1] <= end:
                first, last, parts = todo.pop()
                made.copy(begin, first)
                for part in parts:
                    made.copy(*part)
                made.zero(last - first - sum(stop - start for start, stop in parts))
                begin = last
            made.copy(begin, end)
        if todo or len(made.words) != len(words) or made.size != self.size:
            raise ValueError("an edit outside the copied pieces")
        made.words += self.words
        return made

    def compare(self, source: Source, written: Source) -> None:
        """Raises Mismatch unless every byte of `written` is the one that this layout says."""
        if written.size != self.size:
            raise Mismatch(f"the result has {written.size:,} bytes; expected {self.size:,}")
        words = sorted(self.words)
        longest = max((len(word) for _, word in words), default=0)
        at = 0
        for piece in self.pieces:
            for done in range(0, piece.size, BLOCK):
                size = min(BLOCK, piece.size - done)
                wanted = source.read(piece.source + done, size) if piece.source is not None else bytes(size)
                if written.read(at, size) != _over(wanted, at, words, longest):
                    raise Mismatch(f"bytes {at:,} to {at + size:,} of the result are not what was written")
                at += size

    def write(self, source: Source, descriptor: int) -> None:
        """Into a new, empty file. Raises OSError as the file system does."""
        at = 0
        for piece in self.pieces:
            if piece.source is not None:
                for block in blocks(source, piece.source, piece.size):
                    put(descriptor, block, at)
                    at += len(block)
            else:
                at += piece.size
        os.ftruncate(descriptor, self.size)
        for offset, word in self.words:
            put(descriptor, word, offset)


def _over(block: bytes, at: int, words: Sequence[tuple[int, bytes]], longest: int) -> bytes:
    """`block`, which begins at `at`, with those of the sorted `words` in it that reach into it; none has over `longest`."""
    first = bisect.bisect_left(words, (at - longest, b""))
    last = bisect.bisect_left(words, (at + len(block), b""))
    made = bytearray(block)
    for offset, word in words[first:last]:
        begin, end = max(offset, at), min(offset + len(word), at + len(block))
        if begin < end:
            made[begin - at : end - at] = word[begin - offset : end - offset]
    return bytes(made)


def blocks(source: Source, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `offset`, 1 MiB at most at a time."""
    for at in range(offset, offset + size, BLOCK):
        yield source.read(at, min(BLOCK, offset + size - at))


def put(descriptor: int, data: bytes, offset: int) -> None:
    """All of `data`: a write may be short, as on a disk that fills up, and the next one then says why."""
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done
