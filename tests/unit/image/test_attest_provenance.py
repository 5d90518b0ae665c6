"""Provenance holds to the rules that in-toto and SLSA publish, and tells nothing of the machine that built."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from builder.config.load import parse as parse_spec
from builder.config.spec import Spec
from builder.errors import BuilderError
from builder.image import attest
from builder.image.attest import provenance
from builder.image.attest.names import Image
from builder.image.attest.provenance import Inputs, Run
from builder.image.lock import Lock, LockLayer, Wheel
from tests.layouts import files, image

A, B, C, D, E = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)
HF = "hf_" + "a1B2" * 9
DESCRIPTION = """\
version: 1
name: tiny
model: {source: hf://org/tiny, token: {env: MY_HUB_TOKEN}}
weights: {store: s3://models/tiny, endpoint_url: https://objects.example.com}
image:
  repository: registry.example.com/llm/tiny
  tag: v1
  engine: {name: llama.cpp, version: "2026.10.11549"}
  env: {LOG_LEVEL: debug}
"""
RUN = Run(
    "run-17",
    datetime(2026, 5, 4, 12, 0, 0, 999, tzinfo=UTC),
    datetime(2026, 5, 4, 14, 1, 0, tzinfo=timezone(timedelta(hours=2))),
    {"docker": "28.2", "buildkit": "0.22"},
)
LOCK = Lock("tiny", "3.11", ("linux/amd64",), ("torch==2",), (LockLayer("engine", (Wheel("torch", "2+cpu", (C, D)),)),))


def spec(*changes: tuple[str, str]) -> Spec:
    body = DESCRIPTION
    for old, new in changes:
        assert old in body
        body = body.replace(old, new)
    return parse_spec(body.encode(), "builder.yaml")


def made(of: Spec | None = None, **inputs: Any) -> dict[str, Any]:
    named = Image("registry.example.com/llm/tiny", "v1", f"sha256:{A}")
    given: dict[str, Any] = {"base": Image("debian", "bookworm-slim", f"sha256:{B}"), "context": E, "lock": LOCK} | inputs
    return provenance.statement(of or spec(), named, Inputs(**given), RUN)


def faults(statement: Any) -> list[str]:
    """Where the statement breaks a rule.

    Rules: github.com/in-toto/attestation spec/v1: statement.md, resource_descriptor.md, digest_set.md, field_types.md;
    slsa.dev/spec/v1.1/provenance (what Build L1 requires, the types of the rest).
    """
    found: list[str] = []

    def need(holds: bool, rule: str) -> None:
        if not holds:
            found.append(rule)

    def uri(value: Any) -> bool:  # TypeURI and ResourceURI: RFC 3986, with a scheme
        return isinstance(value, str) and bool(urlsplit(value).scheme) and not re.search(r"\s", value)

    def resource(one: Any, at: str) -> None:
        known = {"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"}
        need(isinstance(one, dict) and set(one) <= known, f"{at}: fields of a ResourceDescriptor")
        need(bool({"uri", "digest", "content"} & set(one)), f"{at}: one of uri, digest, content")
        need("uri" not in one or uri(one["uri"]), f"{at}: uri")
        digests = one.get("digest", {})
        need(isinstance(digests, dict), f"{at}: digest is an object")
        need(
            all(re.fullmatch(r"[0-9a-f]{64}", str(v)) for k, v in digests.items() if k == "sha256"),
            f"{at}: sha256 is lower-case hex",
        )

    need(statement.get("_type") == "https://in-toto.io/Statement/v1", "_type")
    subjects = statement.get("subject")
    need(isinstance(subjects, list) and bool(subjects), "subject: required")
    for one in subjects or ():
        resource(one, "subject")
        need(bool(one.get("digest")), "subject: each MUST have digest")
    names = [one["name"] for one in subjects or () if "name" in one]
    need(len(names) == len(set(names)), "subject: name SHOULD be unique")
    need(statement.get("predicateType") == "https://slsa.dev/provenance/v1", "predicateType")
    predicate = statement.get("predicate", {})
    definition, run = predicate.get("buildDefinition", {}), predicate.get("runDetails", {})
    need(set(predicate) == {"buildDefinition", "runDetails"}, "buildDefinition and runDetails: required")
    need(uri(definition.get("buildType")), "buildType: required, TypeURI")
    external, internal = definition.get("externalParameters"), definition.get("internalParameters", {})
    need(isinstance(external, dict), "externalParameters: required, object")
    need(isinstance(internal, dict), "internalParameters: object")
    need(not set(external or ()) & set(internal), "the same field name SHOULD NOT be in both parameters")
    for one in definition.get("resolvedDependencies", ()):
        resource(one, "resolvedDependencies")
    builder, metadata = run.get("builder", {}), run.get("metadata", {})
    need(uri(builder.get("id")), "builder.id: required, TypeURI")
    version = builder.get("version", {})
    need(isinstance(version, dict) and all(isinstance(v, str) for v in version.values()), "builder.version: map of strings")
    need(isinstance(metadata.get("invocationId", ""), str), "invocationId: string")
    for key in ("startedOn", "finishedOn"):
        need(
            bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata.get(key, ""))), f"{key}: Timestamp, RFC 3339 in UTC"
        )
    return found


def test_it_holds_to_the_published_rules() -> None:
    assert faults(made()) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1", "_type"),
        (("subject", 0, "digest"), {}, "MUST have digest"),
        (("subject", 0, "digest", "sha256"), A.upper(), "lower-case hex"),
        (("predicate", "buildDefinition", "buildType"), "image build", "buildType"),
        (("predicate", "buildDefinition", "externalParameters"), None, "externalParameters"),
        (("predicate", "buildDefinition", "internalParameters"), {"description": {}}, "SHOULD NOT"),
        (("predicate", "buildDefinition", "resolvedDependencies", 0), {"name": "x"}, "one of uri"),
        (("predicate", "runDetails", "builder", "id"), "", "builder.id"),
        (("predicate", "runDetails", "metadata", "startedOn"), "2026-05-04T12:00:00+02:00", "startedOn"),
    ],
)
def test_the_rules_can_be_broken(path: tuple[str | int, ...], value: Any, said: str) -> None:
    statement: Any = made()
    at = statement
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert any(said in fault for fault in faults(statement)), faults(statement)


def test_it_is_about_the_image_by_digest() -> None:
    assert made()["subject"] == [{"name": "registry.example.com/llm/tiny", "digest": {"sha256": A}}]


def test_everything_that_went_in_is_named_by_digest() -> None:
    found = made(manifest=f"sha256:{B}")["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert found == [
        {
            "name": "base",
            "uri": f"pkg:oci/debian@sha256:{B}?repository_url=docker.io/library/debian&tag=bookworm-slim",
            "digest": {"sha256": B},
        },
        {"name": "wheel", "uri": "pkg:pypi/torch@2%2Bcpu", "digest": {"sha256": C}},
        {"name": "wheel", "uri": "pkg:pypi/torch@2%2Bcpu", "digest": {"sha256": D}},
        {"name": "context", "digest": {"sha256": E}},
        {"name": "weights", "digest": {"sha256": B}},
    ]
    assert [one["name"] for one in made(lock=None)["predicate"]["buildDefinition"]["resolvedDependencies"]] == [
        "base",
        "context",
    ]


def test_a_tool_of_the_build_is_named_by_digest_too() -> None:
    tool = LockLayer("cuobjdump", (Wheel("nvidia-cuda-cuobjdump", "13.5.37", (A,)),))
    lock = dataclasses.replace(LOCK, tools=(tool,))
    [found] = [one for one in made(lock=lock)["predicate"]["buildDefinition"]["resolvedDependencies"] if one["name"] == "tool"]
    assert (found["digest"], found["uri"]) == ({"sha256": A}, "pkg:pypi/nvidia-cuda-cuobjdump@13.5.37")


def test_times_are_utc_and_versions_are_told() -> None:
    predicate = made()["predicate"]
    assert predicate["runDetails"]["metadata"] == {
        "invocationId": "run-17", "startedOn": "2026-05-04T12:00:00Z", "finishedOn": "2026-05-04T12:01:00Z",
    }  # fmt: skip
    assert predicate["buildDefinition"]["internalParameters"] == {"versions": {"docker": "28.2", "buildkit": "0.22"}}


def test_the_description_is_there_as_it_was_read() -> None:
    found = made()["predicate"]["buildDefinition"]["externalParameters"]["description"]
    assert found["model"]["token"] == {"env": "MY_HUB_TOKEN"}  # the name, as the file has it
    assert found["image"]["engine"] == {"name": "llama.cpp", "version": "2026.10.11549"}
    assert found["image"]["env"] == {"LOG_LEVEL": "debug"}
    assert found["weights"]["endpoint_url"] == "https://objects.example.com"
    assert found == json.loads(json.dumps(spec().model_dump(mode="json")))  # nothing to leave out: nothing left out


PLACES = (
    ("source: hf://org/tiny", "source: /home/somebody/models/tiny"),
    ("store: s3://models/tiny", "store: ~/weights"),
    ("https://objects.example.com", "http://127.0.0.1:9000"),
    ("  tag: v1\n", "  tag: v1\n  wheelhouse: /home/somebody/wheels\n  ca_bundle: /etc/ssl/corp.pem\n"),
    ("endpoint_url:", "require_signature: [/home/somebody/key.pub, 'awskms:///alias/models', keys/models.pub], endpoint_url:"),
)


def test_no_place_of_this_machine_is_in_it() -> None:
    body = json.dumps(made(spec(*PLACES)))
    for word in ("somebody", "/etc/ssl", "127.0.0.1", "~/"):
        assert word not in body
    found = json.loads(body)["predicate"]["buildDefinition"]["externalParameters"]["description"]
    assert found["image"]["wheelhouse"] == found["weights"]["store"] == provenance.LOCAL  # that there was one is told
    assert found["weights"]["require_signature"] == [provenance.LOCAL, "awskms:///alias/models", "keys/models.pub"]


@pytest.mark.parametrize(
    "env",
    [{"NOTE": f"x {HF}"}, {"DB_PASSWORD": "swordfish"}, {"PROXY": "http://me:swordfish@proxy.example.com"}],
    ids=["token", "password", "address"],
)
def test_nothing_that_looks_like_a_secret_is_in_it(env: dict[str, str]) -> None:
    bare = spec()
    leaky = bare.model_copy(update={"image": bare.image.model_copy(update={"env": env})})  # loading may refuse it already
    body = json.dumps(made(leaky))
    assert "swordfish" not in body
    assert HF not in body
    assert provenance.LEFT_OUT in body


def test_without_a_digest_there_is_nothing_to_state() -> None:
    with pytest.raises(BuilderError, match="base image debian:bookworm-slim: its digest is not known"):
        made(base=Image("debian", "bookworm-slim"))


def test_a_described_build_has_both_documents(tmp_path: Path) -> None:
    digest = image(tmp_path / "i", files({"a": ""}))
    found = attest.describe(
        tmp_path / "i", "registry.example.com/llm/tiny:v1", base="debian:bookworm-slim", base_digest=f"sha256:{B}",
        spec=spec(), lock=LOCK, context_digest=E, run=RUN,
    )  # fmt: skip
    statement = json.loads(found.provenance)
    assert faults(statement) == []
    assert statement["subject"][0]["digest"]["sha256"] == digest.removeprefix("sha256:")
    assert str(tmp_path) not in found.provenance + found.sbom
    written = found.write(tmp_path / "out")
    assert [path.name for path in written] == ["sbom.cdx.json", "provenance.intoto.json"]
    assert written[1].read_text() == found.provenance
