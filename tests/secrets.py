"""One made-up secret of each kind, put together here so that no file holds anything that looks like one."""

from __future__ import annotations

import base64
import random

_random = random.Random(7)
WORD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def word(count: int, letters: str = WORD) -> bytes:
    return "".join(_random.choice(letters) for _ in range(count)).encode()


def _pem(kind: str, body: bytes, *, head: str = "") -> bytes:
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN {kind}-----\n{head}{text}-----END {kind}-----\n".encode()


_EC = b"\x30\x2e\x02\x01\x00" + bytes(_random.randrange(256) for _ in range(43))  # as short as PKCS#8 of Ed25519 is
_RSA = bytes(_random.randrange(256) for _ in range(1200))
_HEAD = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0123456789ABCDEF0123456789ABCDEF\n\n"
_JWT_HEAD = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=")
_JWT_BODY = base64.urlsafe_b64encode(b'{"sub":"someone","exp":1}').rstrip(b"=")
_B64 = WORD + "+/"
_HEX = "0123456789abcdef"
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

SECRETS: dict[str, list[bytes]] = {
    "Hugging Face token": [b"hf_" + b"a1" + word(32), b"api_org_" + word(34)],
    "AWS access key": [b"AKIA" + word(16, _BASE32), b"ASIA" + word(16, _BASE32)],
    "AWS secret key": [
        b"aws_s" + b"ecret_access_key = " + word(40, _B64),
        b'"S' + b'ecretAccessKey": "' + word(40, _B64) + b'"',
        b"AWS_S" + b"ECRET_ACCESS_KEY=" + word(40, _B64),
    ],
    "GitHub token": [
        *(b"gh" + one + b"_" + word(36) for one in (b"p", b"o", b"u", b"s", b"r")),
        b"github" + b"_pat_" + word(22) + b"_" + word(59),
    ],
    "GitLab token": [b"gl" + b"pat-" + word(20)],
    "API key": [
        b"sk-" + b"proj-" + word(80, WORD + "-_") + b"x",
        b"sk-" + b"ant-api03-" + word(95, WORD + "-_") + b"x",
        b"sk-" + word(48),
        b"gsk" + b"_" + word(52),
        b"r8" + b"_" + word(37),
    ],
    "NVIDIA API key": [b"nv" + b"api-" + word(64, WORD + "-_")],
    "Google API key": [b"AI" + b"za" + word(35, WORD + "-_")],
    "Google OAuth secret": [b"GOC" + b"SPX-" + word(28), b"ya" + b"29." + word(100)],
    "Slack token": [
        b"xo" + b"xb-123456789012-1234567890123-" + word(24),
        b"xa" + b"pp-1-A012345678-123456789012-" + word(64, _HEX),
    ],
    "Slack webhook": [b"https://hooks.slack.com/" + b"services/T01234567/B01234567/" + word(24)],
    "npm token": [b"np" + b"m_" + word(36)],
    "PyPI token": [b"py" + b"pi-AgEIcHlwaS5vcmc" + word(120)],
    "Stripe key": [b"sk_" + b"live_" + word(24)],
    "Vault token": [b"hv" + b"s." + word(90)],
    "DigitalOcean token": [b"dop" + b"_v1_" + word(64, _HEX)],
    "JSON web token": [_JWT_HEAD + b"." + _JWT_BODY + b"." + word(43), _JWT_HEAD + b"." + _JWT_BODY * 90 + b"." + word(43)],
    "Azure storage key": [b"DefaultEndpointsProtocol=https;AccountName=a;Account" + b"Key=" + word(86, _B64) + b"=="],
    "Azure shared key": [b"Endpoint=sb://a;SharedAccess" + b"Key=" + word(43, _B64) + b"="],
    "Azure signature": [b"https://a.blob.example.com/c?sv=2024-01-01&si" + b"g=" + word(43) + b"%3D"],
    "key of a Kubernetes client": [b"client-key" + b"-data: " + word(400)],
    "private key": [
        _pem("RSA PRIVATE KEY", _RSA),
        _pem("PRIVATE KEY", _EC),
        _pem("ENCRYPTED PRIVATE KEY", _RSA),
        _pem("OPENSSH PRIVATE KEY", b"openssh-key-v1\0" + _RSA[:300]),
        _pem("RSA PRIVATE KEY", _RSA, head=_HEAD),
        _pem("RSA PRIVATE KEY", _RSA).replace(b"\n", b"\r\n"),
        b'{"type": "service_account", "private_key": "' + _pem("PRIVATE KEY", _RSA).replace(b"\n", b"\\n") + b'"}',
    ],
}  # fmt: skip
