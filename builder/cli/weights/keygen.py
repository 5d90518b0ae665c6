"""builder weights keygen."""

from __future__ import annotations

import os
from pathlib import Path

import click

from builder.cli.common import Session, options
from builder.cli.weights.signatures import passphrase_option, secret
from builder.errors import CapabilityError, ConfigError

PRIVATE, PUBLIC = "builder-signing.key", "builder-signing.pub"


@click.command("keygen")
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="For the two files.")
@passphrase_option("Encrypt the private key with what this variable holds.")
@options
def command(session: Session, folder: Path, passphrase: str | None) -> None:
    """Make an Ed25519 key pair that signs models. Never overwrites; the private key's mode is 0600."""
    from builder.weights import sign

    word = secret(passphrase) if passphrase else b""
    if passphrase and not word:
        raise ConfigError(f"{passphrase}: empty", hint="an empty passphrase encrypts nothing")
    body, key = sign.generate(word)
    private, public = folder / PRIVATE, folder / PUBLIC
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _create(public, key.pem, 0o644)
        try:
            _create(private, body, 0o600)
        except OSError:
            public.unlink()
            raise
    except FileExistsError as exc:
        raise ConfigError(f"{exc.filename}: is there already", hint="choose another folder") from exc
    except OSError as exc:
        raise CapabilityError(f"{exc.filename or folder}: {exc.strerror}", hint="choose a folder you may write to") from exc
    session.show(
        {"private": str(private), "public": str(public), "key": key.id},
        f"key {key.id[:16]}\n{private}  signs; keep it secret\n{public}  goes to whoever pulls",
    )


def _create(path: Path, body: bytes, mode: int) -> None:
    """A new file, on disk when this returns, with its mode from its first moment."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(fd)
