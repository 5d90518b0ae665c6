"""requirements.lock: every wheel of an image with its version and sha256, as pip's `--require-hashes` reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from builder import __version__, process
from builder.config.spec import Spec
from builder.errors import BuilderError
from builder.image.dockerfile import requirements


def lock(spec: Spec, *, wheelhouse: Path | None = None) -> str:
    """The text of the lock: what pip would install for `spec`, resolved for its Python with this machine's pip settings.

    Environment markers are judged by the Python that runs this, so the platform must be the image's: Linux, same CPU.
    Raises BuilderError with pip's reason if there is no solution, or if an index gives no sha256.
    """
    pins = requirements(spec)["engine.txt"].split()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--only-binary", ":all:", "--python-version", spec.image.python, "--target", "unused-by-dry-run"]
    command += [] if spec.image.index else ["--no-index"]
    command += ["--find-links", str(wheelhouse)] if wheelhouse else []
    done = process.run([*command, *pins], timeout_s=900, hint="check image.engine.version, image.python and image.wheelhouse")
    lines = sorted((_line(entry) for entry in json.loads(done.stdout)["install"]), key=str.lower)
    head = f"# Wheels of {spec.name}, Python {spec.image.python}, resolved by builder {__version__}: `builder image lock`.\n"
    return head + "".join(lines)


def _line(entry: dict[str, dict[str, dict[str, dict[str, str]]]]) -> str:
    name, version = entry["metadata"]["name"], entry["metadata"]["version"]
    digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if not digest:
        raise BuilderError(f"{name}=={version}: the index gives no sha256", hint="use an index that does, or a wheelhouse")
    return f"{name}=={version} --hash=sha256:{digest}\n"
