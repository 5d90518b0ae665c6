"""CycloneDX 1.6 of an image. The same inventory, lock and base give the same bytes: no clock, no random serial number.

Sources: CycloneDX 1.6 JSON reference; the purl types deb, oci and pypi of package-url/purl-spec. cyclonedx-python-lib: the
format's own library, which sorts and checks what it writes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from builder import __version__
from builder.image.attest import dpkg
from builder.image.attest.dists import Dist
from builder.image.attest.dpkg import Deb
from builder.image.attest.inventory import Inventory
from builder.image.attest.names import Image, image_purl, pypi_purl
from builder.image.lock import Lock, normal

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "pkg:generic/coldstart-builder")
TOOL = "coldstart-builder"
LISTED = 2000
"""Unowned files named one by one; the count is always of all."""


def text(found: Inventory, image: Image, base: Image, lock: Lock | None = None) -> str:
    """The document. image: what it is called; its digest is the inventory's. base: its parent, empty where not known.

    Where a lock has the very version that is installed, and one hash for it, the component has that hash.
    """
    root = _image(found, image)
    outside = {"system": _system(found), "runtime": _runtime(found), "base": _base(base)}
    debs = {one.name: _deb(one, found.os) for one in found.debs}
    wheels = {f"{one.name}=={one.version}": _wheel(one, found, lock) for one in reversed(found.dists)}
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, found.digest), version=1)
    bom.metadata = BomMetaData(
        component=root,
        timestamp=found.created,
        tools=ToolRepository(components=[Component(type=ComponentType.APPLICATION, name=TOOL, version=__version__)]),
    )
    bom.components = [*filter(None, outside.values()), *debs.values(), *wheels.values()]
    _link_system(bom, outside["base"], outside["system"], debs, dpkg.edges(found.debs))
    asks = [normal(re.split("={2,3}", ask)[0]) for ask in lock.asks] if lock else []
    tops = _link_wheels(bom, wheels, found.requires, asks)
    bom.register_dependency(root, [*filter(None, outside.values()), *tops, *([] if outside["system"] else debs.values())])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _link_system(
    bom: Bom,
    base: Component | None,
    system: Component | None,
    debs: Mapping[str, Component],
    needs: Mapping[str, Iterable[str]],
) -> None:
    """The base has the system, the system has every package, and packages need each other."""
    if system is not None:
        bom.register_dependency(system, debs.values())
        if base is not None:
            bom.register_dependency(base, [system])
    for name, component in debs.items():
        bom.register_dependency(component, [debs[other] for other in needs[name]])


def _link_wheels(
    bom: Bom, wheels: Mapping[str, Component], requires: Mapping[str, Iterable[str]], asks: Iterable[str]
) -> list[Component]:
    """Wheels need each other. Returns those that hang on the image itself."""
    by_name: dict[str, list[Component]] = {}
    for component in wheels.values():
        by_name.setdefault(component.name, []).append(component)
    for name, components in by_name.items():
        below = [one for other in requires[name] for one in by_name[other]]
        for component in components:
            bom.register_dependency(component, below)
    return [one for name in _tops(requires, asks) for one in by_name[name]]


def _tops(requires: Mapping[str, Iterable[str]], asks: Iterable[str]) -> list[str]:
    """Names that hang on the image itself: those asked for, those that nobody needs, and one of each ring left over."""
    needed = {other for names in requires.values() for other in names}
    first = [name for name in asks if name in requires] + [name for name in sorted(requires) if name not in needed]
    tops: list[str] = []
    reached: set[str] = set()
    for name in (*first, *sorted(requires)):
        if name in tops or (name in reached and name not in first):
            continue
        tops.append(name)
        todo = [name]
        while todo:
            now = todo.pop()
            if now not in reached:
                reached.add(now)
                todo += requires[now]
    return tops


def _image(found: Inventory, image: Image) -> Component:
    title = found.labels.get("org.opencontainers.image.title", "image")
    purl = image_purl(Image(image.repository, image.tag, found.digest), arch=found.arch, title=title)
    listed = found.unowned[:LISTED]
    properties = [
        _property("unowned:count", str(len(found.unowned))),
        *(_property("unowned:file", path) for path in listed),
        *(
            _property(name.removeprefix("builder."), value)
            for name, value in found.labels.items()
            if name.startswith("builder.")
        ),
    ]
    return Component(
        type=ComponentType.CONTAINER, name=image.name or title, version=found.digest, purl=purl,
        bom_ref=purl.to_string(), hashes=[_sha256(found.digest.removeprefix("sha256:"))], properties=properties,
    )  # fmt: skip


def _base(base: Image) -> Component | None:
    if not base.repository:
        return None
    purl = image_purl(base) if base.digest else None
    return Component(
        type=ComponentType.CONTAINER, name=base.name, version=base.digest or base.tag or None, purl=purl,
        bom_ref=purl.to_string() if purl else f"base:{base.name}",
        hashes=[_sha256(base.digest.removeprefix("sha256:"))] if base.digest else [],
        properties=[_property("role", "base image")],
    )  # fmt: skip


def _system(found: Inventory) -> Component | None:
    if not found.os:
        return None
    name, version = found.os.get("ID", "linux"), found.os.get("VERSION_ID", "")
    return Component(
        type=ComponentType.OPERATING_SYSTEM, name=name, version=version or None, bom_ref=f"os:{name}@{version}",
        description=found.os.get("PRETTY_NAME") or None,
    )  # fmt: skip


def _runtime(found: Inventory) -> Component | None:
    if not found.runtime:
        return None
    purl = PackageURL("generic", name=TOOL, version=found.runtime)
    return Component(
        type=ComponentType.APPLICATION, name=TOOL, version=found.runtime, bom_ref=purl.to_string(), purl=purl,
        licenses=_licences("Apache-2.0"), properties=[_property("folder", "/opt/builder")],
    )  # fmt: skip


def _deb(one: Deb, os: Mapping[str, str]) -> Component:
    vendor, release = os.get("ID", "debian"), os.get("VERSION_ID", "")
    source, version = one.source
    qualifiers = {"arch": one.arch, "distro": f"{vendor}-{release}" if release else vendor}
    if one.source != (one.name, one.version):  # scanners look advisories up by source package
        qualifiers["upstream"] = source if version == one.version else f"{source}@{version}"
    purl = PackageURL("deb", vendor, one.name, one.version, qualifiers)
    return Component(
        type=ComponentType.LIBRARY, name=one.name, version=one.version, bom_ref=purl.to_string(), purl=purl,
        licenses=_licences(one.licence),
        properties=[_property("found-by", "dpkg"), _property("deb:source", source), _property("deb:source-version", version)],
    )  # fmt: skip


def _wheel(one: Dist, found: Inventory, lock: Lock | None) -> Component:
    purl = pypi_purl(one.name, one.version)
    locked = lock.find(one.name) if lock else None
    hashes = locked.sha256 if locked and locked.version == one.version else ()
    properties = [_property("found-by", "dist-info"), _property("folder", f"/{one.site}")]
    properties += [_property("lock", "pinned")] if hashes else []
    properties += [_property("wheel:sha256", value) for value in hashes if len(hashes) > 1]  # which one: the platform says
    kept = found.kept.get(one.name)
    if kept:
        figures = {"layer": kept.layer, "installed-bytes": str(kept.installed_bytes), "kept-bytes": str(kept.kept_bytes)}
        properties += [_property(name, value) for name, value in figures.items()]
    return Component(
        type=ComponentType.LIBRARY, name=one.name, version=one.version, bom_ref=purl.to_string(), purl=purl,
        licenses=_licences(one.licence), hashes=[_sha256(value) for value in hashes if len(hashes) == 1], properties=properties,
    )  # fmt: skip


def _licences(name: str) -> list[License]:
    return [LicenseFactory().make_from_string(name, license_acknowledgement=LicenseAcknowledgement.DECLARED)] if name else []


def _property(name: str, value: str) -> Property:
    return Property(name=f"builder:{name}", value=value)


def _sha256(value: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=value)
