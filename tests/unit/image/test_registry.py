"""Refusals of registries, as the clients print them, in one line; and digests that differ."""

from __future__ import annotations

import pytest

from builder.errors import BuilderError, IntegrityError, RemoteError
from builder.image import registry
from builder.image.built import BuiltImage

REFERENCE = "r.example.com/llm/tiny:v1"
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
# The last lines of docker 28.2.2 with engine 26.1.5, and of buildah 1.28.2.
SAID = {
    "no login": ("push access denied, repository does not exist or may require authorization: authorization failed: "
                 "no basic auth credentials", "refuses the login"),
    "wrong": ("failed to authorize: failed to fetch oauth token: unexpected status from GET request to "
              "https://r.example.com/token: 401 Unauthorized", "refuses the login"),
    "gone": ('failed to do request: Head "https://127.0.0.1:5990/v2/a/blobs/sha256:2c": dial tcp 127.0.0.1:5990: connect: '
             "connection refused", "does not answer"),
    "authority": ("tls: failed to verify certificate: x509: certificate signed by unknown authority", "does not trust"),
    "plain": ("http: server gave HTTP response to HTTPS client", "speaks no TLS"),
    "name": ("name unknown: The repository with name 'llm/tiny' does not exist in the registry", "does not take this image"),
    "else": ("something nobody knows", "something nobody knows"),
}  # fmt: skip


class Client:
    """push tells, remote_digest shows; everything else is not asked."""

    def __init__(self, told: str | BuilderError, shown: str | BuilderError) -> None:
        self.told, self.shown = told, shown

    def push(self, reference: str) -> str:
        if isinstance(self.told, BuilderError):
            raise self.told
        return self.told

    def remote_digest(self, reference: str) -> str:
        if isinstance(self.shown, BuilderError):
            raise self.shown
        return self.shown


def push(told: str | BuilderError, shown: str | BuilderError, digest: str = DIGEST) -> BuiltImage:
    return registry.push(Client(told, shown), BuiltImage(REFERENCE, digest, 1, ()))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", SAID)
def test_a_refusal_is_one_line_with_a_next_step(case: str) -> None:
    said, means = SAID[case]
    failed = BuilderError(f"exit status 1 from: docker push {REFERENCE}\n  The push refers to repository\n  {said}")
    with pytest.raises(RemoteError) as caught:
        push(failed, "")
    assert caught.value.exit_code == 5
    assert caught.value.message.count("\n") == 0
    assert means in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint


def test_the_digest_that_the_registry_shows_counts() -> None:
    assert push(DIGEST, DIGEST).pushed == DIGEST
    with pytest.raises(IntegrityError, match=f"built as {DIGEST}, the registry shows {OTHER}"):
        push(DIGEST, OTHER)


def test_what_the_client_told_counts_where_nobody_can_ask() -> None:
    assert push(DIGEST, "").pushed == DIGEST
    assert push(DIGEST, BuilderError("no imagetools")).pushed == DIGEST
    with pytest.raises(IntegrityError):
        push(OTHER, "")


def test_an_engine_without_digests_learns_it_from_the_registry() -> None:
    assert push("", OTHER, digest="").pushed == OTHER
