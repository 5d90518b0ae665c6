"""Names of versions. A ref is one small object, written whole, so that it leads to one version or another, never to none.

    refs/<name>         the model as last pushed
    refs/<name>@<tag>   a version that stays what it is until its tag is moved or deleted; a push writes the commit of a hub
                        model as one of them

What no ref leads to is what `gc` may remove.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from builder.errors import ConfigError, IntegrityError
from builder.format.manifest import NAME, is_digest, ref_key
from builder.progress import Progress
from builder.stores.base import Reader, Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.transfer.manifests import REF_BYTES, read_manifest
from builder.weights.lease import hold

PREFIX = "refs/"


@dataclass(frozen=True)
class Ref:
    """ref: name, or name@tag.  digest: `sha256:<hex>` it holds, or "" where it holds something else."""

    ref: str
    digest: str

    @property
    def name(self) -> str:
        return self.ref.partition("@")[0]

    @property
    def tag(self) -> str:
        return self.ref.partition("@")[2]


@dataclass(frozen=True)
class TagReport:
    """ref: name@tag.  digest: what it leads to now; "" where it was deleted.  before: the same, before; "" for none.

    changed: whether anything was, or with dry_run would be, written.
    """

    store: str
    ref: str
    digest: str
    before: str
    changed: bool
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def tag(
    store: Store, ref: str, new: str, *, force: bool = False, dry_run: bool = False, progress: Progress | None = None
) -> TagReport:
    """Let <name>@<new> lead to the version that `ref` does; name: that of `ref`, or the manifest's where it is a digest.

    Raises ConfigError for a malformed tag, and for one that leads to another version already unless `force`;
    IntegrityError where `ref` leads to no readable manifest.
    """
    if not NAME.match(new):
        raise ConfigError(f"tag {new!r} does not match {NAME.pattern}", hint="give the tag alone, without the model's name")
    report = _tag(store, ref, new, force)
    if dry_run or not report.changed:
        return replace(report, dry_run=dry_run)
    with hold(store, "push", progress=progress) as held:  # else a gc could remove the version between look and write
        report = _tag(store, ref, new, force)
        held.require()
        write(store, report.ref, report.digest)
    return report


def delete(store: Store, ref: str, *, force: bool = False, dry_run: bool = False) -> TagReport:
    """Remove the ref; its version stays until a gc. Raises ConfigError for a bare name without `force`, IntegrityError
    where there is no such ref.
    """
    key = ref_key(ref)
    if "@" not in ref and not force:
        raise ConfigError(f"{ref} is the model itself, not a tag of it", hint="give name@tag, or --force to remove the model")
    before = read(store, ref)
    if before is None:
        raise IntegrityError(f"{store.url}: no ref {ref!r}", hint="see `builder weights ls`", where={"key": key})
    if not dry_run:
        store.delete(key)
    return TagReport(store.url, ref, "", before.digest, True, dry_run)


def read(store: Store, ref: str) -> Ref | None:
    """What the ref holds, without following it; None where there is none."""
    body = store.get(ref_key(ref), REF_BYTES)
    if body is None:
        return None
    digest = bytes(body).decode("ascii", "replace").strip()
    return Ref(ref, digest if is_digest(digest) else "")


def write(store: Store, ref: str, digest: str) -> None:
    """Let the ref lead to the manifest `digest`, whatever it held."""
    body = f"{digest}\n".encode()
    store.replace(ref_key(ref), body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))


def refs(store: Store) -> Iterator[Ref]:
    """Every object below refs/, by name. One that is no ref of ours has no digest, and its name may be malformed."""
    for key, _ in store.keys(PREFIX):
        ref = key.removeprefix(PREFIX)
        try:
            found = read(store, ref)
        except (ConfigError, IntegrityError):  # not a ref's name, or larger than a ref can be
            found = Ref(ref, "")
        if found is not None:  # deleted since it was listed
            yield found


def name_of(ref: str, manifest_name: str) -> str:
    """The model's name in `ref`, which may be a digest or ""."""
    return manifest_name if not ref or is_digest(ref) else ref.partition("@")[0]


def _tag(store: Store, ref: str, new: str, force: bool) -> TagReport:
    """What there is to do; nothing is written."""
    manifest = read_manifest(Reader(store), ref)
    whole = f"{name_of(ref, manifest.name)}@{new}"
    before = read(store, whole)
    old = before.digest if before else ""
    if before and old != manifest.digest and not force:
        raise ConfigError(
            f"{whole} is {old or 'damaged'} already, not {manifest.digest}", hint="choose another tag, or move it with --force"
        )
    return TagReport(store.url, whole, manifest.digest, old, old != manifest.digest, False)
