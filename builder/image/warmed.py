"""The compile caches of a container that has served, running or stopped, as a folder on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError

VARIABLE = "BUILDER_COMPILE_CACHE_ROOT"
COPY_S = 600.0


@dataclass(frozen=True)
class Warmed:
    """root: its cache root, copied.  about: the image it ran."""

    root: Path
    about: Mapping[str, str] = field(default_factory=dict)


def take(container: str, folder: Path) -> Warmed:
    """Copy the container's cache root below the existing `folder`.

    Raises ConfigError if there is no such container or its image sets no cache root; CapabilityError without docker, and if
    the root lies in a memory-backed mount, which docker cannot copy from.
    """
    found = _inspect(container)
    environ = dict(pair.partition("=")[::2] for pair in found["Config"].get("Env") or [])
    root = environ.get(VARIABLE, "").rstrip("/")
    if not root.startswith("/"):
        raise ConfigError(
            f"{container}: its image sets no {VARIABLE}", hint="build the image again with this builder, and warm that"
        )
    if root in (found["HostConfig"].get("Tmpfs") or {}) or any(
        mount.get("Destination") == root and mount.get("Type") == "tmpfs" for mount in found.get("Mounts") or []
    ):
        hint = "start it with a volume there, or with --from DIR name a folder that was mounted there"
        raise CapabilityError(f"{container}: {root} is a tmpfs, which `docker cp` cannot read", hint=hint)
    target = folder / "root"
    try:
        process.run(["docker", "cp", f"{container}:{root}", target], timeout_s=COPY_S)
    except BuilderError as exc:
        raise type(exc)(exc.message, hint="stop the server (docker stop), and capture again") from exc
    about = {"image": found["Config"].get("Image", ""), "image_id": found.get("Image", "")}
    return Warmed(target, {name: value for name, value in about.items() if value})


def _inspect(container: str) -> dict[str, Any]:
    if container.startswith("-"):
        raise ConfigError(f"{container!r} is not a container's name", hint="see `docker ps -a`")
    done = process.run(["docker", "inspect", "--type", "container", container], check=False, hint="install docker")
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found
    said = done.stderr.decode(errors="replace").strip()
    if "no such" in said.lower():
        raise ConfigError(f"{container}: no such container", hint="see `docker ps -a`, or give --from DIR")
    raise RemoteError(f"docker: {said[:300]}", hint="see `builder doctor`")
