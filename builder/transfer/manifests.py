"""From what the user asked for to a manifest whose digest is known and checked."""

from __future__ import annotations

from builder.errors import ConfigError, IntegrityError
from builder.format.manifest import MAX_MANIFEST_BYTES, NAME, Manifest, is_digest, manifest_key, parse, ref_key
from builder.transfer.checksum import Buffer, sha256_hex
from builder.transfer.retry import first_request, retrying
from builder.transfer.source import Source, list_keys

REF_BYTES = 256  # "sha256:" and 64 digits and a line end, and room for a stranger's spaces


def resolve(source: Source, ref: str = "") -> str:
    """The digest, `sha256:<hex>`, that `ref` stands for.

    ref: a name, `name@revision`, a digest (returned as it is), or "" for the only name in the store.
    Raises IntegrityError if the store has no such ref, or it does not hold a digest; ConfigError if `ref` is malformed,
    or "" and there are several names or the store cannot list.
    """
    if is_digest(ref):
        return ref
    source = first_request(source)
    ref = ref or _only_name(source)
    key = ref_key(ref)

    def check(body: Buffer) -> None:  # read again: it may have been the wire
        if not is_digest(_text(body)):
            raise IntegrityError(
                f"{source.url}/{key}: expected sha256:<64 hex digits>, found {_text(body)[:80]!r}",
                hint="push the model again",
                where={"key": key, "url": source.url},
            )

    body = source.read(key, limit=REF_BYTES, check=check)
    if body is None:
        raise IntegrityError(
            f"{source.url}: no model {ref!r} ({key} is not there)", hint=_known(source), where={"key": key, "url": source.url}
        )
    return _text(body)


def _text(body: Buffer) -> str:
    return bytes(body).decode("ascii", "replace").strip()


def read_manifest(source: Source, ref: str = "") -> Manifest:
    """The manifest of `ref` (see resolve), its digest checked.

    Raises what resolve does; IntegrityError if the manifest is missing, damaged or of a newer format.
    """
    source = retrying(source)
    digest = resolve(source, ref)
    if is_digest(ref):
        source = first_request(source)
    key = manifest_key(digest)
    at = f"{source.url}/{key}"
    body = source.read(key, limit=MAX_MANIFEST_BYTES, check=lambda body: _check(body, digest, at))
    if body is None:
        raise IntegrityError(
            f"{source.url}: manifest {digest} is not there",
            hint=_known(source) or "push the model again",
            where={"key": key, "url": source.url},
        )
    return parse(bytes(body), at=at, digest=digest)


def names(source: Source) -> list[str] | None:
    """Names of the models in the store, or None where it cannot list."""
    keys = list_keys(source, "refs/")
    if keys is None:
        return None
    return [name for name in (key.removeprefix("refs/") for key in keys) if NAME.match(name)]


def _check(body: Buffer, digest: str, at: str) -> None:
    found = f"sha256:{sha256_hex(body)}"
    if found != digest:
        raise IntegrityError(
            f"{at}: manifest is {found}, expected {digest}",
            hint="push the model again; chunks that are already there are not sent twice",
            where={"object": at},
        )


def _only_name(source: Source) -> str:
    found = names(source)
    if found is None:
        raise ConfigError(f"{source.url}: this store cannot list its models", hint="name the model")
    if not found:
        raise IntegrityError(
            f"{source.url}: no model here (refs/ is empty)", hint="run `builder weights push`", where={"url": source.url}
        )
    if len(found) > 1:
        raise ConfigError(f"{source.url}: {len(found)} models here", hint=f"name one of: {', '.join(found[:20])}")
    return found[0]


def _known(source: Source) -> str:
    found = names(source)
    return f"models here: {', '.join(found[:20])}" if found else ""
