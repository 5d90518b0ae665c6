"""Pushing to a registry with the engine's own client and the user's own credentials (`docker login`); this program sees none.

What was pushed is what was built: the digest that the client tells, and the one that the registry shows when asked anew,
are compared with the archive's. Layers that the registry has are not sent again (the clients ask by HEAD).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from builder.errors import BuilderError, CapabilityError, IntegrityError, RemoteError
from builder.image.backends.base import Backend
from builder.image.built import BuiltImage, full_name
from builder.progress import NoProgress, Progress, step

LOGIN = "docker login {host} (buildah: buildah login {host}), with an account that may push there"
# The first that matches wins. Texts: Docker 26, buildah 1.28, distribution 2.8.
CAUSES: Sequence[tuple[str, str, str]] = (
    (
        r"unauthorized|authentication required|no basic auth credentials|401|denied|403 Forbidden|incorrect username",
        "refuses the login",
        LOGIN,
    ),
    (
        r"x509|certificate|tls: ",
        "shows a certificate that the engine does not trust",
        "give the engine its authority: /etc/docker/certs.d/{host}/ca.crt (buildah: /etc/containers/certs.d/{host}/ca.crt)",
    ),
    (r"server gave HTTP response to HTTPS client", "speaks no TLS", "give it TLS, or let the engine know"),
    (r"connection refused|no such host|i/o timeout|no route to host|network is unreachable|EOF|connection reset",
     "does not answer", "see that {host} is right and can be reached from here"),
    (r"name (unknown|invalid)|invalid repository name|repository .*not (found|exist)|405|manifest invalid|unsupported",
     "does not take this image", "create the repository, or name another one in image.repository"),
)  # fmt: skip


def push(backend: Backend, built: BuiltImage, progress: Progress | None = None) -> BuiltImage:
    """Send the image to where its reference says. Returns it with the digest that the registry shows.

    Raises RemoteError (exit 5) in one line where the registry refuses or does not answer, IntegrityError where it shows
    another digest than the one that was built. A docker engine without the containerd store makes the digest while pushing.
    """
    reference = built.reference
    host = full_name(reference).split("/")[0]
    with step(progress or NoProgress(), f"image: push to {host}"):
        try:
            told = backend.push(reference)
        except CapabilityError:
            raise
        except BuilderError as exc:
            raise refusal(host, reference, exc.message) from exc
        shown = _shown(backend, reference) or told
    if built.digest and shown != built.digest:
        raise IntegrityError(f"{reference}: built as {built.digest}, the registry shows {shown}", hint="push again by digest")
    return dataclasses.replace(built, pushed=shown)


def _shown(backend: Backend, reference: str) -> str:
    """What the registry shows; "" where it cannot be asked by another program than the one that pushed."""
    try:
        return backend.remote_digest(reference)
    except (BuilderError, ValueError, KeyError):
        return ""


def refusal(host: str, reference: str, said: str) -> RemoteError:
    """One line from what the client printed.

    >>> refusal("r.example.com", "r.example.com/a:1", "exit status 1 from: docker push\\n  denied: no").message
    'r.example.com/a:1: not pushed: r.example.com refuses the login: denied: no'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    for pattern, what, hint in CAUSES:
        if re.search(pattern, last, re.IGNORECASE):
            return RemoteError(f"{reference}: not pushed: {host} {what}: {last}", hint=hint.format(host=host))
    return RemoteError(f"{reference}: not pushed: {last}", hint="try again; what is there already is not sent twice")
