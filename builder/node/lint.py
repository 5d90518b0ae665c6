"""What would make a node ignore, lose or re-pull what was baked. Files are read, nothing is contacted.

Rules, each with the report behind it (docs/bake.md, "What goes wrong"):
    raid0, soci, init-rate, volume-size, encrypted, ami-latest     EC2NodeClass and user data
    pull-always, tag-latest, no-digest                             pod templates
    unreadable                                                     a file that is not what its name says
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from builder import units
from builder.errors import ConfigError

GIB = 1 << 30
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": GIB, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_POD_AT = {"Pod": ("spec",), "CronJob": ("spec", "jobTemplate", "spec", "template", "spec")}


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: "error" breaks the cache, "warning" may. where: object and field."""

    path: Path
    where: str
    rule: str
    severity: str
    message: str
    hint: str

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "where": self.where,
            "rule": self.rule,
            "severity": self.severity,
            "message": self.message,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        return f"{self.path}: {self.where}: {self.severity}: {self.message} [{self.rule}]"


_Hit = tuple[str, str, str, str, str]  # where, rule, severity, message, hint


def lint(paths: list[Path], *, disk_bytes: int = 0) -> list[Finding]:
    """Findings in the YAML and TOML files among `paths`, folders searched; in order of path.

    disk_bytes: size of the baked disk, for rule volume-size; 0 leaves that rule out.
    Raises ConfigError for a path that is not there.
    """
    findings = []
    for path in _files(paths):
        check = _toml if path.suffix == ".toml" else _yaml
        findings += [Finding(path, *hit) for hit in check(path, disk_bytes)]
    return findings


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".toml") and p.is_file())
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file or folder")


def _toml(path: Path, disk_bytes: int) -> list[_Hit]:
    return _user_data(path.read_text(errors="replace"), "")


def _yaml(path: Path, disk_bytes: int) -> list[_Hit]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(errors="replace")))
    except yaml.YAMLError as exc:
        return [("file", "unreadable", "error", f"not YAML: {' '.join(str(exc).split())}", "correct it")]
    hits: list[_Hit] = []
    for raw in documents:
        for item in raw.get("items", [raw]) if isinstance(raw, dict) else []:
            hits += _object(item, disk_bytes) if isinstance(item, dict) else []
    return hits


def _object(raw: dict[str, Any], disk_bytes: int) -> list[_Hit]:
    kind, name = str(raw.get("kind", "")), str(_at(raw, "metadata").get("name", ""))
    if kind == "EC2NodeClass":
        return list(_node_class(_at(raw, "spec"), f"EC2NodeClass/{name}", disk_bytes))
    pod = _at(raw, *_POD_AT.get(kind, ("spec", "template", "spec")))
    return list(_pod(pod, f"{kind}/{name}"))


def _node_class(spec: dict[str, Any], where: str, disk_bytes: int) -> Iterator[_Hit]:
    mappings = [_at(m, "ebs") for m in spec.get("blockDeviceMappings") or [] if isinstance(m, dict)]
    seeded = [ebs for ebs in mappings if ebs.get("snapshotID")]
    if seeded and spec.get("instanceStorePolicy") == "RAID0":
        yield (f"{where}: instanceStorePolicy", "raid0", "error", "RAID0 hides the baked /var/lib/containerd",
               "remove instanceStorePolicy, or use a second node class")  # fmt: skip
    for ebs in mappings:
        yield from _volume(ebs, where, disk_bytes)
    for term in spec.get("amiSelectorTerms") or []:
        if str(_at(term).get("alias", "")).endswith("@latest"):
            yield (f"{where}: amiSelectorTerms", "ami-latest", "warning", "@latest may change containerd any day",
                   "pin it: bottlerocket@v1.62.0")  # fmt: skip
    if isinstance(spec.get("userData"), str) and seeded:
        yield from _user_data(spec["userData"], f"{where}: userData: ")


def _volume(ebs: dict[str, Any], where: str, disk_bytes: int) -> Iterator[_Hit]:
    at, snapshot, rate = f"{where}: blockDeviceMappings", ebs.get("snapshotID"), ebs.get("volumeInitializationRate")
    if rate is not None and not snapshot:
        yield at, "init-rate", "error", "volumeInitializationRate without snapshotID is refused by the API", "name the snapshot"
    if rate is not None and not (isinstance(rate, int) and 100 <= rate <= 300):
        yield at, "init-rate", "error", f"volumeInitializationRate is {rate!r}; expected 100 to 300 MiB/s", "use 300"
    if snapshot and rate is None:
        yield (at, "init-rate", "warning", "no volumeInitializationRate: every block is loaded on first touch",
               "set it to 300, or use Fast Snapshot Restore")  # fmt: skip
    if snapshot and "encrypted" in ebs:
        yield (
            at,
            "encrypted",
            "warning",
            "with snapshotID, the snapshot decides",
            "encrypt the snapshot",
        )
    size = _quantity(ebs.get("volumeSize"))
    if snapshot and size is not None and 0 < size < disk_bytes:
        yield (at, "volume-size", "error", f"volumeSize is {ebs['volumeSize']}, the disk {units.format_size(disk_bytes)}",
               f"volumeSize: {disk_bytes // GIB}Gi")  # fmt: skip


def _user_data(text: str, where: str) -> list[_Hit]:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return [(f"{where}file", "unreadable", "error", f"not TOML: {exc}", "Bottlerocket takes TOML user data only")]
    found = _at(raw, "settings", "container-runtime").get("snapshotter")
    if found not in (None, "overlayfs"):
        return [(f"{where}settings.container-runtime.snapshotter", "soci", "error",
                 f"{found!r} empties the baked /var/lib/containerd at boot", "remove the setting")]  # fmt: skip
    return []


def _pod(pod: dict[str, Any], where: str) -> Iterator[_Hit]:
    for group in ("initContainers", "containers"):
        for raw in pod.get(group) or []:
            if isinstance(raw, dict) and isinstance(raw.get("image"), str):
                yield from _container(raw["image"], raw.get("imagePullPolicy"), f"{where}: {group}: {raw.get('name', '?')}")


def _container(image: str, policy: object, where: str) -> Iterator[_Hit]:
    by_digest = "@sha256:" in image
    tag = image.split("@")[0].rsplit("/", 1)[-1].partition(":")[2]
    if policy == "Always":
        yield (
            where,
            "pull-always",
            "error",
            "imagePullPolicy Always asks the registry although the image is there",
            "IfNotPresent",
        )
    elif policy is None and not by_digest and tag in ("", "latest"):
        yield where, "tag-latest", "error", f"{image}: the policy of :latest is Always", "name the digest, or set IfNotPresent"
    if not by_digest:
        yield where, "no-digest", "warning", f"{image}: a tag can move away from what was baked", "name repository@sha256:..."


def _quantity(value: object) -> int | None:
    """Bytes of a Kubernetes quantity such as 120Gi; None if it is none."""
    text = str(value)
    for unit, factor in _UNITS.items():
        if text.endswith(unit) and text.removesuffix(unit).isdigit():
            return int(text.removesuffix(unit)) * factor
    return int(text) if text.isdigit() else None


def _at(raw: object, *keys: str) -> dict[str, Any]:
    """The mapping at `keys`, or an empty one."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else {}
