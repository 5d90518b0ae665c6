"""How an image came to be: an in-toto Statement v1 with the SLSA provenance v1 predicate.

Sources: in-toto/attestation spec/v1 (statement, resource_descriptor, digest_set); slsa.dev/spec/v1.1/provenance. What the
fields mean for this build type stands in docs/supply-chain.md. Nothing of the machine that built is in it: no path, no host
name, nothing of its environment; and nothing that looks like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from builder import __version__
from builder.config.spec import SECRET_LOOK, Spec
from builder.errors import BuilderError
from builder.image.attest.names import Image, image_purl, pypi_purl
from builder.image.dockerfile import LOOPBACK, SECRET_NAME, USERINFO
from builder.image.lock import Lock

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:coldstart-builder:image-build:v1"
BUILDER_ID = "urn:coldstart-builder:builder:local"
"""Whoever ran `builder build`, wherever: no claim beyond SLSA Build L1."""
LEFT_OUT = "(left out: looks like a secret)"
LOCAL = "(local)"


@dataclass(frozen=True, slots=True)
class Run:
    """One build. invocation: its name, unique. versions: of what built, such as docker, buildx, buildkit."""

    invocation: str
    started: datetime
    finished: datetime
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What went in, each by its digest. context: hex sha256 of `image.context.Context`. manifest: of the weights, or ""."""

    base: Image
    context: str
    lock: Lock | None = None
    manifest: str = ""


def statement(spec: Spec, image: Image, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Raises BuilderError where the image's or the base's digest is not known: the statement would say nothing."""
    for what, one in (("image", image), ("base image", inputs.base)):
        if not one.digest.startswith("sha256:"):
            raise BuilderError(
                f"{what} {one}: its digest is not known, and provenance is about digests",
                hint="build with a containerd image store",
            )
    return {
        "_type": STATEMENT,
        "subject": [{"name": image.name, "digest": {"sha256": image.digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"description": description(spec)},
                "internalParameters": {"versions": dict(sorted(run.versions.items()))},
                "resolvedDependencies": _dependencies(inputs),
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {"coldstart-builder": __version__}},
                "metadata": {
                    "invocationId": run.invocation,
                    "startedOn": _time(run.started),
                    "finishedOn": _time(run.finished),
                },
            },
        },
    }


def description(spec: Spec) -> dict[str, Any]:
    """builder.yaml as it was read, without what is the machine's own: absolute paths, loopback endpoints, secrets."""
    found: dict[str, Any] = spec.model_dump(mode="json")
    for section, key in (("model", "source"), ("weights", "store"), ("image", "wheelhouse"), ("image", "ca_bundle")):
        found[section][key] = _place(found[section][key])
    found["weights"]["require_signature"] = [_place(one) for one in found["weights"]["require_signature"]]
    for key in ("sources", "auth"):
        if found["image"].get("apt"):
            found["image"]["apt"][key] = _place(found["image"]["apt"][key])
    if urlsplit(found["weights"]["endpoint_url"] or "").hostname in LOOPBACK:
        found["weights"]["endpoint_url"] = LOCAL
    cleaned: dict[str, Any] = _clean(found)
    return cleaned


def _place(value: str | None) -> str | None:
    """A relative path means the same to whoever has the description; an absolute one is of this machine."""
    return LOCAL if value is not None and re.match(r"[/~]|file:", value) else value


def _clean(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _clean(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, name) for inner in value]
    if isinstance(value, str) and (SECRET_LOOK.search(value) or USERINFO.search(value) or SECRET_NAME.search(name)):
        return LEFT_OUT
    return value


def _dependencies(inputs: Inputs) -> list[dict[str, Any]]:
    """The base, every wheel, the steps' tools, the build folder, the weights' manifest.

    One entry per hash: a lock may hold one per platform.
    """
    found: list[dict[str, Any]] = [_resource("base", inputs.base.digest, image_purl(inputs.base).to_string())]
    tools = [("tool", wheel) for tool in (inputs.lock.tools if inputs.lock else ()) for wheel in tool.wheels]
    for kind, wheel in [*(("wheel", wheel) for wheel in (inputs.lock.wheels if inputs.lock else ())), *tools]:
        purl = pypi_purl(wheel.name, wheel.version).to_string()
        found += [_resource(kind, value, purl) for value in wheel.sha256]
    found.append(_resource("context", inputs.context))
    if inputs.manifest:
        found.append(_resource("weights", inputs.manifest))
    return found


def _resource(name: str, digest: str, uri: str = "") -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}} | ({"uri": uri} if uri else {})


def _time(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
