"""Signatures that the program `cosign` makes and checks: keys in files of its own, or in a key management service.

Only keys, never identities: no certificate is asked for, and nothing is sent to a transparency log, so that a signature can
be made and checked without the internet (`--tlog-upload=false`, `--insecure-ignore-tlog`). Tested with cosign 2.5. By hand:

    cosign verify-blob --key cosign.pub --insecure-ignore-tlog --signature SIGNATURE MANIFEST

cosign takes the passphrase of a key from COSIGN_PASSWORD, and a service's credentials from that service's own variables.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path

from builder import process
from builder.errors import BuilderError, CapabilityError

TIMEOUT_S = 120
HINT = "install cosign 2.x (Debian 13: apt-get install cosign), or use an Ed25519 key"
KEY_HINT = "check the key; its passphrase goes into COSIGN_PASSWORD"


def public_key(key: str) -> bytes:
    """The public half, PEM, of a key that cosign can use. Raises CapabilityError without cosign, BuilderError."""
    return _cosign("public-key", f"--key={key}")


def sign(key: str, body: bytes) -> bytes:
    """Signature of `body`. Raises CapabilityError without cosign, BuilderError with what cosign said."""
    with tempfile.TemporaryDirectory(prefix="builder-cosign-") as private:
        blob = Path(private) / "manifest.json"
        blob.write_bytes(body)
        said = _cosign("sign-blob", f"--key={key}", "--tlog-upload=false", "--yes", blob)
    try:
        return base64.b64decode(said.strip(), validate=True)
    except binascii.Error as exc:
        raise BuilderError(f"cosign sign-blob printed no base64: {said[:80]!r}", hint="use cosign 2.x") from exc


def verify(public_pem: bytes, signature: bytes, body: bytes) -> str:
    """ "" if `signature` is the key's, of `body`; else why cosign does not say so. Raises CapabilityError without cosign."""
    with tempfile.TemporaryDirectory(prefix="builder-cosign-") as private:
        blob, key, value = (Path(private) / name for name in ("manifest.json", "key.pub", "signature"))
        blob.write_bytes(body)
        key.write_bytes(public_pem)
        value.write_bytes(base64.b64encode(signature))  # in a file: an argument could be taken for a URL
        options = [f"--key={key}", f"--signature={value}", "--insecure-ignore-tlog"]
        done = process.run(["cosign", "verify-blob", *options, blob], hint=HINT, timeout_s=TIMEOUT_S, check=False)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said or [f"exit status {done.returncode}"])[-1][:500]


def _cosign(*words: str | Path) -> bytes:
    """What it printed."""
    if process.which("cosign") is None:
        raise CapabilityError("cosign: program not found", hint=HINT)
    return process.run(["cosign", *words], hint=KEY_HINT, timeout_s=TIMEOUT_S).stdout
