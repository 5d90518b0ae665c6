"""The forms that secrets have. Pure.

Sources: GitHub "Token types and formats"; AWS IAM "Unique identifiers"; GitLab "Token overview"; Google's API key and service
account formats; Slack "Token types"; the npm and PyPI announcements of their tokens; RFC 7519 (JWT); RFC 7468 (PEM); and the
rules of gitleaks (MIT) where a vendor documents none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_START = rb"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"
# Every repetition is bounded, and no two that follow each other take the same bytes: a hostile file costs no more than others.
_BREAK = rb"(?:\\[rn]|\s){1,16}"
_KEY_HEADERS = _BREAK + rb"(?:[A-Za-z-]{2,20}: [^\n\\]{1,100}" + _BREAK + rb"){0,4}"
_KEY_BODY = rb"(?:(?:\\[rn]|[\s\"',]){0,16}[A-Za-z0-9+/=]){60}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """fixed: one of these begins the match. near: one of them lies in a run of characters of tokens, or shortly before it
    (search.RUN, search.CONTEXT). varied: what follows has at least 4 different characters; placeholders have fewer.
    guessable: people choose such values, so that a fingerprint would tell them.
    """

    kind: str
    fixed: tuple[bytes, ...]
    regex: re.Pattern[bytes]
    near: bool = True
    varied: bool = True
    guessable: bool = False


# Values that vendors' documentation and published packages print, by `search.Hit.fingerprint`.
KNOWN: frozenset[str] = frozenset(
    {
        "33998881ecb6ca2c",  # AWS DataSync's API reference: the example of an Azure signature; in botocore
        "5de261506c0ff857",  # the hub's continuous integration; in transformers/testing_utils.py
        "bf145d9380bbe05b",  # PyJWT's README
        "f1cdf4d3485952c9",  # joserfc's README
    }
)


def _token(kind: str, fixed: str, rest: bytes) -> Pattern:
    """A word that begins with one of `fixed`."""
    parts = tuple(one.encode() for one in fixed.split())
    either = b"|".join(re.escape(one) for one in parts)
    return Pattern(kind, parts, re.compile(_START + rb"(?:" + either + rb")" + rest))


def _text(kind: str, fixed: str, regex: bytes, *, near: bool = True) -> Pattern:
    return Pattern(kind, tuple(one.encode() for one in fixed.split("|")), re.compile(regex), near)


def _login(kind: str, fixed: str, regex: bytes, *, varied: bool = True) -> Pattern:
    return Pattern(kind, tuple(one.encode() for one in fixed.split("|")), re.compile(regex), False, varied, guessable=True)


_SK = rb"(?:(?:proj|svcacct|admin|None|ant|or-v1|lf)-[A-Za-z0-9_-]{32,300}|[A-Za-z0-9]{32,200})(?![A-Za-z0-9_-])"
_JWT = rb"[A-Za-z0-9_-]{10,600}\.eyJ[A-Za-z0-9_-]{10,6000}\.[A-Za-z0-9_-]{20,1000}(?![A-Za-z0-9_-])"
_AWS = rb"(?i)ecret_?access_?key[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?![A-Za-z0-9/+]*EXAMPLE)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
_WEBHOOK = rb"hooks\.slack\.com/services/T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/\w{20,40}"
_SIGNATURE = rb"(?<=[?&;])sig=(?:[A-Za-z0-9+/]|%2[BFbf]){43}(?:=|%3[Dd])"
PATTERNS: tuple[Pattern, ...] = (
    _token("Hugging Face token", "hf_ api_org_", rb"[A-Za-z0-9]{34}"),
    _token("AWS access key", "AKIA ASIA", rb"(?![A-Z0-9]*EXAMPLE)[A-Z2-7]{16}(?![A-Za-z0-9]{3})"),
    _text("AWS secret key", "ecretAccessKey|ecret_access_key|ECRET_ACCESS_KEY", _AWS),
    _token("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", rb"[A-Za-z0-9]{36}"),
    _token("GitHub token", "github_pat_", rb"[A-Za-z0-9_]{50,255}"),
    _token("GitLab token", "glpat- gldt- glrt- glptt- glcbt- glsoat- glagent-", rb"[A-Za-z0-9_.-]{20,255}"),
    _token("API key", "sk-", _SK),
    _token("API key", "gsk_", rb"[A-Za-z0-9]{52}"),
    _token("API key", "r8_", rb"[A-Za-z0-9]{37}"),
    _token("NVIDIA API key", "nvapi-", rb"[A-Za-z0-9_-]{50,100}"),
    _token("Google API key", "AIza", rb"[A-Za-z0-9_-]{35}"),
    _token("Google OAuth secret", "GOCSPX- ya29.", rb"[A-Za-z0-9_-]{28,300}"),
    _token("Slack token", "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs-", rb"[0-9]{6,14}-[A-Za-z0-9-]{10,200}"),
    _token("Slack token", "xapp-", rb"[0-9]-[A-Z0-9]{6,20}-[0-9]{6,20}-[a-f0-9]{20,100}"),
    _text("Slack webhook", "hooks.slack.com/services/T", _WEBHOOK),
    _token("npm token", "npm_", rb"[A-Za-z0-9]{36}"),
    _token("PyPI token", "pypi-AgE", rb"[A-Za-z0-9_-]{50,400}"),
    _token("Stripe key", "sk_live_ rk_live_", rb"[A-Za-z0-9]{20,200}"),
    _token("Vault token", "hvs.", rb"[A-Za-z0-9_-]{60,300}"),
    _token("DigitalOcean token", "dop_v1_", rb"[a-f0-9]{64}"),
    _token("JSON web token", "eyJ", _JWT),
    # The key that this excludes is the one of Azure's storage emulator, which its documentation prints.
    _text("Azure storage key", "AccountKey=", rb"AccountKey=(?!Eby8vdM02xNOcqFlqUwJPLl)[A-Za-z0-9+/]{86}=="),
    _text("Azure shared key", "SharedAccessKey=", rb"SharedAccessKey=[A-Za-z0-9+/]{43}="),
    _text("Azure signature", "sig=", _SIGNATURE),
    _text("key of a Kubernetes client", "client-key-data:", rb"client-key-data:\s{0,8}[\"']?[A-Za-z0-9+/]{100}"),
    # With a body: TLS libraries hold the bare line.
    _text("private key", "PRIVATE KEY", rb"PRIVATE KEY(?: BLOCK)?-----" + _KEY_HEADERS + _KEY_BODY, near=False),
)

# Lengths are exact where the vendor's are: compiled Python has a letter behind a string that is not of it.

# For settings and the image's own configuration, where the words mean what they say.
_ADDRESS = rb"://[^\s/:@\"'<>{}$%]{0,100}:[^\s/@\"'<>{}$]{1,200}@"
ADDRESS = _login("address with a password", "://", _ADDRESS, varied=False)
REGISTRY: tuple[Pattern, ...] = (
    _login("registry login", '"auth"', rb'"auth"\s{0,8}:\s{0,8}"[A-Za-z0-9+/]{6,2000}={0,2}"'),
    _login("registry login", '"identitytoken"', rb'"identitytoken"\s{0,8}:\s{0,8}"[^"]{8,6000}"'),
)
_NPM = rb"_(?:authToken|auth|password)\s{0,4}=\s{0,4}[\"']?[^\s\"'$]{8,400}"
NPM = _login("npm login", "_auth|_password", _NPM)
NETRC = _login("login of a machine", "password ", rb"password [^\s$]{1,400}", varied=False)
_KUBE = rb"token[\"']?:\s{0,8}[\"']?[A-Za-z0-9._-]{16,6000}"
KUBECONFIG = _login("token of a Kubernetes user", "token", _KUBE)
