"""Each form of secret is found once, wherever blocks end, and not what only looks like one."""

from __future__ import annotations

import base64
import io
import json
import random
import urllib.parse

import pytest

from builder.errors import IntegrityError
from builder.image import patterns, search
from builder.image.search import Feed, Limit, Pushed, Search, Tee, either, forms, hide, runs
from tests.secrets import SECRETS


class Slow(io.RawIOBase):
    """Gives out so many bytes at a time, whatever is asked for."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step, self.at = data, step, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self.data[self.at : self.at + min(self.step, size)]
        self.at += len(piece)
        return piece


def kinds(data: bytes, **options: object) -> list[str]:
    return [hit.kind for hit in Search(**options).find(data)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SECRETS)
def test_it_is_found_once_and_its_value_is_not_told(kind: str) -> None:
    for secret in SECRETS[kind]:
        [hit] = Search().find(b"before = " + secret + b"\nafter")
        assert hit.kind == kind
        assert secret.decode() not in hit.hint
        assert secret.decode() not in repr(hit)
        assert len(hit.hint) <= 9
        assert len(hit.fingerprint) == 16


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("before", [b"", b"\n", b"\\n", b'"', b"=", b"token%3D", b"\0", b"https://"])
def test_it_is_found_whatever_stands_before_it(kind: str, before: bytes) -> None:
    for secret in SECRETS[kind]:
        assert kind in kinds(b"x = " + before + secret + b"\n")


@pytest.mark.parametrize("kind", SECRETS)
def test_it_is_found_once_wherever_a_block_ends(kind: str) -> None:
    """Every position of the border within the secret, and some bytes around it."""
    for secret in SECRETS[kind]:
        noise = random.Random(1).randbytes(search.OVERLAP + 300)
        data = noise + b"\n" + secret + b"\n" + noise
        first = len(noise)
        for border in range(first - 2, first + len(secret) + 4, max(1, len(secret) // 40)):
            feed = Feed(Search())
            hits = [*feed.block(data[:border], last=False), *feed.block(data[border:], last=True)]
            assert [hit.kind for hit in hits] == [kind], border


@pytest.mark.parametrize("kind", SECRETS)
def test_it_is_found_in_the_smallest_blocks_and_at_the_very_end(kind: str) -> None:
    for secret in SECRETS[kind]:
        for data in (b"\n" + secret + b"\n", b"\n" + secret):
            assert [hit.kind for hit in Feed(Search()).all(Slow(data, 7))] == [kind]


@pytest.mark.parametrize(
    "innocent",
    [
        b"hf_" + b"x" * 34,  # a placeholder
        b"from hf_hub import hf_hub_download_and_all_that_follows_from_it, hf_raise_for_status",
        b"AKIA" + b"IOSFODNN7EXAMPLE",
        b"xAKIA" + b"Q7WEQ3RT5YUI2PAS",  # in a word
        b"-----BEGIN PRIVATE KEY-----\n",  # TLS libraries hold the line
        b"-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
        b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",  # a header alone
        b"AccountKey=" + b"Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
        b"task-" + b"a1B2c3D4" * 5,
        b"sk-learn-is-not-a-key-of-anything-at-all-here",
        b"_ZN4hf_aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3EvaB1",  # in a mangled name
    ],
)
def test_what_only_looks_like_one_is_not_found(innocent: bytes) -> None:
    assert kinds(b"text " + innocent + b" text") == []


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (patterns.ADDRESS, b"https://me:pass@index.example.com/simple", True),
        (patterns.ADDRESS, b"redis://:pass@db:6379/0", True),
        (patterns.ADDRESS, b"https://${USER}:${TOKEN}@index.example.com/", False),
        (patterns.ADDRESS, b"http://host:8080/a@b", False),
        (patterns.REGISTRY[0], b'{"auths": {"r.example.com": {"auth": "bWU6cGFzcw=="}}}', True),
        (patterns.REGISTRY[0], b'{"auths": {"r.example.com": {"auth": ""}}}', False),
        (patterns.REGISTRY[1], b'{"identitytoken": "a1b2c3d4e5"}', True),
        (patterns.NPM, b"//r.example.com/:_authToken=a1b2c3d4e5", True),
        (patterns.NPM, b"//r.example.com/:_authToken=${NPM_TOKEN}", False),
        (patterns.NETRC, b"machine h login l password p", True),
        (patterns.KUBECONFIG, b"    token: a1b2c3d4e5f6a7b8c9", True),
        (patterns.KUBECONFIG, b"    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token", False),
    ],
)  # fmt: skip
def test_settings(pattern: patterns.Pattern, text: bytes, found: bool) -> None:
    assert kinds(text, extra=(pattern,)) == ([pattern.kind] if found else [])
    assert all(hit.fingerprint == "" for hit in Search((pattern,)).find(text))  # people choose passwords


@pytest.mark.parametrize("around", [b"", b"a", b"ab", b"abc", b"user:"])
def test_a_given_secret_is_found_in_every_form(around: bytes) -> None:
    secret = b"correct horse/battery+staple"
    whole = around + secret + around
    for text in (
        whole,
        base64.b64encode(whole),
        base64.urlsafe_b64encode(whole),
        urllib.parse.quote(whole, safe="").encode(),
        json.dumps((whole + b'"\\').decode()).encode(),
    ):
        hits = list(Search(given=[secret]).find(b"x" + text + b"y"))
        assert {hit.kind for hit in hits} == {search.GIVEN}
        assert {hit.hint + hit.fingerprint for hit in hits} == {""}  # nothing of it is shown


def test_a_given_secret_longer_than_the_overlap_is_found_across_a_border() -> None:
    secret = random.Random(2).randbytes(3 * search.OVERLAP)
    assert [hit.kind for hit in Feed(Search(given=[secret])).all(Slow(b"x" * 100 + secret, 5000))] == [search.GIVEN]


def test_a_short_given_secret_is_not_searched_in_base64() -> None:
    assert all(len(form) >= 3 for form in forms(b"abc"))
    assert b"YWJj" not in forms(b"abc")


def test_runs_hold_what_leads_to_them() -> None:
    word = b"a1" * 10
    assert runs(b"\0" * 50 + b"key: " + word + b"\0") == b"\0" * (search.CONTEXT - 5) + b"key: " + word
    assert runs(b"key: " + word[:-1] + b"\0") == b""


def test_either() -> None:
    assert either([b"ghp_", b"gho_", b"sk-"]) == rb"(?:gh(?:o_|p_)|sk\-)"
    assert either([b"one"]) == b"one"


def test_no_fixed_part_begins_another() -> None:
    """The expression of all fixed parts would stop at the shorter one."""
    parts = sorted(part for one in patterns.PATTERNS if one.near for part in one.fixed)
    assert [(a, b) for a in parts for b in parts if a != b and b.startswith(a)] == []


@pytest.mark.parametrize(
    "hostile",
    [
        b"PRIVATE KEY-----" + b"\n" * (1 << 20),
        b"PRIVATE KEY-----\n" + b"+\n" * (1 << 19),
        (b"PRIVATE KEY-----\n" + b"a: b\n" * 20) * 4000,
        b"eyJ" + b"a" * (1 << 20),
        b"eyJaaaaaaaaaa.eyJ" * (1 << 15),
        b"secret_access_key" + b" " * (1 << 20),
    ],
    ids=range(6),
)
def test_a_hostile_file_ends(hostile: bytes) -> None:
    """Nothing that grows faster than the file: any of these would take hours if repetitions could share bytes."""
    assert kinds(hostile) == []


@pytest.mark.parametrize(("word", "found"), [(b"xX0" * 12, False), (b"a1B2" * 9, True)])
def test_a_placeholder_has_fewer_than_four_different_characters(word: bytes, found: bool) -> None:
    assert bool(kinds(b"hf_" + word)) == found


def test_hide_cuts_what_is_shown() -> None:
    secret = SECRETS["Hugging Face token"][0].decode()
    text = hide(f"RUN curl -H {secret} https://me:pass@h/", Search((patterns.ADDRESS,)))
    assert text == "RUN curl -H hf_a1... https://me...h/".replace("https://me...", "https://me...")
    assert hide("RUN pw=opensesame", Search(given=[b"opensesame"])) == "RUN pw=(hidden)"
    assert hide("nothing", Search()) == "nothing"


def test_a_tee_gives_all_and_finds_all() -> None:
    secret = SECRETS["npm token"][0]
    tee = Tee(Slow(b"a " + secret + b" b", 5), Feed(Search()))
    read = tee.read(5) + tee.read(5)
    assert [hit.kind for hit in tee.rest()] == ["npm token"]
    assert read == (b"a " + secret)[:10]


def test_pushed_bytes_come_again() -> None:
    pushed = Pushed(io.BytesIO(b"abcdef"))
    assert (pushed.head, pushed.read(2), pushed.read(10), pushed.read(1)) == (b"abcdef", b"ab", b"cdef", b"")


def test_a_limit_holds_for_several_readers_together() -> None:
    limit = Limit(5)
    assert limit.of(io.BytesIO(b"abc")).read(9) == b"abc"
    with pytest.raises(IntegrityError):
        limit.of(io.BytesIO(b"def")).read(9)
