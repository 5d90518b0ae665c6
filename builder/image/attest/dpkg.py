"""What dpkg installed: /var/lib/dpkg/status, or status.d of images without a dpkg of their own (distroless)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from builder.image.attest.licences import of_copyright
from builder.image.attest.paragraphs import paragraphs
from builder.image.attest.rootfs import Rootfs

STATUS = "var/lib/dpkg/status"
FOLDER = "var/lib/dpkg/status.d/"
LISTS = "var/lib/dpkg/info/"
WANTED = re.compile(r"var/lib/dpkg/(status|status\.d/[^/]+|info/[^/]+\.list)|usr/share/doc/[^/]+/copyright")


@dataclass(frozen=True, slots=True)
class Deb:
    """An installed package. source: name and version of what it was built from. needs: alternatives of each dependency.

    files: paths that it owns, links resolved.
    """

    name: str
    version: str
    arch: str
    source: tuple[str, str]
    licence: str
    needs: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]
    files: frozenset[str]


def debs(root: Rootfs) -> tuple[Deb, ...]:
    """Every installed package, by name and architecture."""
    found = {(one.name, one.arch): one for one in _all(root)}
    return tuple(found[key] for key in sorted(found))


def edges(packages: Iterable[Deb]) -> dict[str, tuple[str, ...]]:
    """Name of a package to those it depends on here: of each alternative the first that is installed, or provided."""
    packages = tuple(packages)
    known = {one.name for one in packages}
    virtual: dict[str, str] = {}
    for one in packages:
        for name in one.provides:
            virtual.setdefault(name, one.name)
    found = {}
    for one in packages:
        chosen = (
            next((n if n in known else virtual[n] for n in names if n in known or n in virtual), "") for names in one.needs
        )
        found[one.name] = tuple(sorted({name for name in chosen if name and name != one.name}))
    return found


def _all(root: Rootfs) -> Iterator[Deb]:
    for fields in paragraphs(root.text(STATUS) or ""):
        if "package" in fields and fields.get("status", "").endswith(" installed"):
            name, arch = fields["package"], fields.get("architecture", "")
            owned = root.text(f"{LISTS}{name}:{arch}.list") or root.text(f"{LISTS}{name}.list") or ""
            yield _deb(root, fields, owned.split("\n"))
    for path in sorted(root.bodies):
        if path.startswith(FOLDER) and not path.endswith(".md5sums"):
            sums = root.text(f"{path}.md5sums") or ""
            for fields in (one for one in paragraphs(root.text(path) or "") if "package" in one):
                yield _deb(root, fields, [line.partition("  ")[2] for line in sums.split("\n")])


def _deb(root: Rootfs, fields: dict[str, str], owned: Iterable[str]) -> Deb:
    name, version = fields["package"], fields.get("version", "")
    source = re.fullmatch(r"(\S+)(?: \((.+)\))?", fields.get("source", name))
    needs = ",".join(fields.get(key, "") for key in ("pre-depends", "depends"))
    return Deb(
        name=name,
        version=version,
        arch=fields.get("architecture", ""),
        source=(source[1], source[2] or version) if source else (name, version),
        licence=of_copyright(root.text(f"usr/share/doc/{name}/copyright") or ""),
        needs=tuple(names for part in needs.split(",") if (names := tuple(filter(None, map(_bare, part.split("|")))))),
        provides=tuple(filter(None, map(_bare, fields.get("provides", "").split(",")))),
        files=frozenset(root.resolve(path) for path in owned if path),
    )


def _bare(relation: str) -> str:
    """The package of `libc6:any (>= 2.34) [amd64]`."""
    match = re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", relation)
    return match[1] if match else ""
