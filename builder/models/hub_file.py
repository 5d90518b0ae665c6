"""One file of a hub model, read straight from the hub, byte range by byte range: nothing is kept on this machine.

What a reader gets is what was published: a file in large-file storage has its sha256 from the hub, which the push compares
with what it read; a file in git has its blob id, which is compared here, before the first byte is handed out.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from builder.errors import IntegrityError, printable
from builder.models.hub_http import Ranges, Token
from builder.transfer import retry
from builder.transfer.source import Limits

WHOLE_BYTES = 16 << 20  # the hub takes files above 10 MB into large-file storage only

# The hub counts in windows of 300 s and says how long one lasts (huggingface.co/docs/hub/rate-limits): waiting that long is
# better than failing a push of hours.
POLICY = replace(retry.Policy(), deadline_s=900.0, retry_after_cap_s=300.0)


@dataclass(frozen=True)
class HubFile:
    """A file at one commit. Picklable without the token: elsewhere, that machine's own login or HF_TOKEN counts.

    path, size, sha256: as of every ModelFile; sha256 is the hub's own, of files in large-file storage.
    blob_id: git's, of the others; one above 16 MiB, which no hub has, is read without that check.
    endpoint: the hub.  limits: of one request.  policy: of one read, over all its requests.
    """

    path: str
    size: int
    sha256: str
    blob_id: str
    repo: str
    commit: str
    endpoint: str
    token: Token = field(default_factory=Token, repr=False, compare=False)
    limits: Limits = field(default=Limits(), repr=False)
    policy: retry.Policy = field(default=POLICY, repr=False)

    @property
    def at(self) -> str:
        return printable(f"hf://{self.repo}@{self.commit[:12]}/{self.path}")

    @property
    def identity(self) -> str:
        """Equal for equal bytes: a commit never changes."""
        return f"hub:{self.repo}@{self.commit}/{self.path}:{self.sha256 or self.blob_id}"

    @contextmanager
    def open(self) -> Iterator[HubReading]:
        """Asks for nothing yet. Reading raises RemoteError, and IntegrityError where the hub has another file there."""
        yield HubReading(self)


class HubReading:
    """Thread-safe: any number of ranges at once, each tried again on its own."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self._ranges = Ranges(file)
        self._lock = threading.Lock()
        self._body: bytes | None = None

    def read_at(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.file.size - offset))
        if size == 0:
            return b""
        if not self.file.sha256 and self.file.blob_id and self.file.size <= WHOLE_BYTES:
            return self._whole()[offset : offset + size]
        return retry.call(lambda: self._ranges.read(offset, size), self.file.policy)

    def require_unchanged(self) -> None:
        """Nothing to ask: a commit does not change, and each answer was compared with what the hub had said of it."""

    def _whole(self) -> bytes:
        """The file, compared with git's blob id; read once."""
        with self._lock:
            if self._body is None:
                self._body = retry.call(self._checked, self.file.policy)
            return self._body

    def _checked(self) -> bytes:
        file = self.file
        body = self._ranges.read(0, file.size)
        found = blob_id(body)
        if found != file.blob_id:
            raise IntegrityError(
                f"{file.at}: git blob {found}, but the hub says {file.blob_id}",
                hint="run again; if it stays, something between here and the hub alters files",
                where={"file": file.path, "expected": file.blob_id, "found": found},
            )
        return body


def blob_id(body: bytes) -> str:
    """
    >>> blob_id(b"{}")
    '9e26dfeeb6e641a33dae4961196235bdb965b21b'
    """
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
