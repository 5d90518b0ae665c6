"""What the commands share that need a signature: the option --require-signature, and secrets by reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder.cli.weights.inputs import Inputs
from builder.errors import ConfigError

if TYPE_CHECKING:
    from builder.weights.sign import PublicKey

MAX_KEY_BYTES = 64 << 10


def require_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --require-signature, which the command gets as `trusted`."""
    return click.option(
        "--require-signature",
        "trusted",
        multiple=True,
        metavar="KEY",
        help="Only a model signed by this public key (PEM file, or a KMS URI that cosign takes); again for more, any will do.",
    )(function)


def signed_ref(inputs: Inputs, ref: str, trusted: tuple[str, ...]) -> str:
    """What to read: `ref`, or where a signature is required the digest of the manifest that was found signed.

    trusted: from the command line; if there is none, weights.require_signature of the description.
    """
    spec = inputs.spec()
    if not trusted and spec:
        here = inputs.loaded()
        trusted = tuple(k if "://" in k else str(here.path_of(k)) for k in spec.weights.require_signature)
    if not trusted:
        return ref
    from builder import pipeline

    found = pipeline.require_signature(inputs.store(read_only=True), ref, [_public_key(key) for key in trusted])
    inputs.session.say(f"{found.digest}: signed by key {found.key[:16]}")
    return found.digest


def read_key(at: str) -> bytes:
    """A key in PEM form. at: a path, or env:NAME for the variable that holds it. Raises ConfigError."""
    if at.startswith("env:"):
        return secret(at)
    try:
        with Path(at).expanduser().open("rb") as file:
            body = file.read(MAX_KEY_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{at}: key cannot be read: {exc.strerror}", hint="give a PEM file, or env:NAME") from exc
    if len(body) > MAX_KEY_BYTES:
        raise ConfigError(f"{at}: more than {MAX_KEY_BYTES} bytes, so it is no key in PEM form")
    return body


def secret(reference: str) -> bytes:
    """What the environment variable of env:NAME holds. A secret itself never stands on a command line, which all can read."""
    kind, _, name = reference.partition(":")
    if kind != "env" or not name:
        raise ConfigError("expected env:NAME, a reference to a variable", hint="export NAME=..., then give env:NAME")
    if name not in os.environ:
        raise ConfigError(f"{reference}: {name} is not set", hint=f"export {name}=...")
    return os.environb[os.fsencode(name)]


def _public_key(at: str) -> PublicKey:
    from builder.weights import cosign, sign

    return sign.public_key(cosign.public_key(at) if "://" in at else read_key(at), at=at)


def passphrase_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --passphrase, a reference."""
    return click.option("--passphrase", metavar="env:NAME", help=text)
