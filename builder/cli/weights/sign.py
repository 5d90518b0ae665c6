"""builder weights sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from builder import units
from builder.cli.weights.inputs import Inputs, store_options
from builder.cli.weights.signatures import passphrase_option, read_key, secret
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.weights.sign import Signer


@click.command("sign")
@click.argument("ref", required=False)
@click.option("--key", metavar="KEY", help="Ed25519 private key: a PEM file (PKCS#8), or env:NAME of a variable that holds it.")
@click.option("--cosign", metavar="KEY", help="Sign with the program cosign: its key file, or a KMS URI.")
@passphrase_option("The variable that holds the passphrase of --key.")
@store_options
def command(inputs: Inputs, ref: str | None, key: str | None, cosign: str | None, passphrase: str | None) -> None:
    """Put a signature of the model REF beside its manifest in the store.

    REF: best the sha256:<hex> that push printed, for a name is what the store says it is; default: what builder.lock says
    was pushed, else the description's name.
    """
    from builder import pipeline

    report = pipeline.sign_weights(inputs.store(), ref or _pushed(inputs), _signer(key, cosign, passphrase))
    inputs.session.show(
        report.to_json(),
        f"{report.name}  {report.digest}\n"
        f"signed by {report.kind} key {report.key[:16]}; {units.count(report.signatures, 'signature')} there now",
    )


def _pushed(inputs: Inputs) -> str:
    from builder.config import lock

    name = inputs.ref(None)
    if not name:
        raise ConfigError("no model is named", hint="give REF, best the sha256:<hex> that push printed")
    pushed = lock.section(inputs.loaded().lock_path, "weights")
    # The lock's digest is this machine's own knowledge; the store's ref is whatever its last writer made it.
    return str(pushed["manifest"]) if pushed.get("name") == name and "manifest" in pushed else name


def _signer(key: str | None, cosign: str | None, passphrase: str | None) -> Signer:
    from builder.weights import sign

    if (key is None) == (cosign is None):
        raise ConfigError("one key signs", hint="give --key or --cosign")
    if key is not None:
        return sign.private_key(read_key(key), at=key, passphrase=secret(passphrase) if passphrase else b"")
    if passphrase:
        raise ConfigError("cosign takes its passphrase from COSIGN_PASSWORD", hint="leave out --passphrase")
    return sign.CosignSigner(cosign or "")
