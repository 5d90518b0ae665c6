"""What a scan finds, and that an image is clean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builder.errors import ClaimError
from builder.units import count


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: what it looks like. place: layer, file name, environment, history, label, annotation, entrypoint, command,
    configuration or attestation. detail: the first letters of a secret; the name of a variable; a format and a size.
    layer: its digest. path: in the layer; ARCHIVE!MEMBER in an archive. made_by: the history line that made the layer.
    fingerprint: of a token, to allow it by; it does not tell the token.
    """

    kind: str
    place: str
    detail: str = ""
    layer: str = ""
    path: str = ""
    made_by: str = ""
    fingerprint: str = ""

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}

    def text(self) -> str:
        where = f"{self.layer[:19]}:/{self.path}" if self.layer else self.place
        named = " (in the file's name)" if self.place == "file name" else ""
        by = f"\n    made by: {self.made_by[:160]}" if self.made_by else ""
        by += f"\n    fingerprint: {self.fingerprint}" if self.fingerprint else ""
        return f"{self.kind}: {where}{named}{' ' + self.detail if self.detail else ''}{by}"


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What was looked at, and what was found. unread: archives in layers that could not be opened, and why.

    others: platforms in the same archive, not looked at. files, size: of all layers; bytes unpacked.
    """

    reference: str
    digest: str
    platform: str
    others: tuple[str, ...]
    layers: int
    files: int
    size: int
    findings: tuple[Finding, ...]
    unread: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("digest", "platform", "layers", "files", "size")}
        lists = {"others": list(self.others), "unread": list(self.unread), "findings": [one.to_json() for one in self.findings]}
        return {"image": self.reference} | plain | lists


def require_clean(findings: Sequence[Finding], reference: str) -> None:
    """Raise ClaimError (exit 7) that lists every finding."""
    if findings:
        lines = "".join(f"\n  {one.text()}" for one in findings)
        raise ClaimError(
            f"{reference}: {count(len(findings), 'thing')} that no image may hold{lines}",
            hint="do not push it; remove the step that added it, build again, and revoke a secret that was real",
            where={"findings": [one.to_json() for one in findings]},
        )
