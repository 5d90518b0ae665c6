"""The lock of a description: what it must hold, and the file beside builder.yaml, if it still holds that.

Apart from builder/image/resolve.py, which makes a lock: most commands only read one.
"""

from __future__ import annotations

from pathlib import Path

from builder.config.spec import Image, Spec
from builder.errors import ConfigError
from builder.image import lock as locks
from builder.image import platforms, pruning
from builder.image.dockerfile import RUNTIME_PINS
from builder.image.lock import Lock
from builder.image.recipes import recipe

FILE = "requirements.lock"


def asks(spec: Spec) -> tuple[str, ...]:
    """The pins that a lock of `spec` resolves: the engine's, the user's, builder's own."""
    return (*recipe(spec.image).requirements, *spec.image.packages, *RUNTIME_PINS)


def tools(image: Image) -> tuple[str, ...]:
    """Names of the lock's sections for build steps."""
    return (pruning.TOOL,) if pruning.prunes(image) else ()


def read(folder: Path, spec: Spec) -> Lock:
    """The lock beside builder.yaml. Raises ConfigError if there is none, or if it is of another description."""
    path = folder / FILE
    try:
        lock = locks.read(path.read_text(), str(path))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: not there; an image is built from locked wheels only", hint="run `builder lock`") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}", hint="run `builder lock`") from exc
    stale = _stale(lock, spec)
    if stale:
        raise ConfigError(f"{path}: out of date: {stale}", hint="run `builder lock` again")
    return lock


def _stale(lock: Lock, spec: Spec) -> str:
    """What the lock holds instead of what builder.yaml asks for, or ""."""
    wanted = asks(spec)
    if missing := [pin for pin in wanted if pin not in lock.asks]:
        return f"builder.yaml asks for {missing[0]}, which it does not hold"
    if more := [pin for pin in lock.asks if pin not in wanted]:
        return f"it holds {more[0]}, which builder.yaml does not ask for"
    if lock.python != spec.image.python:
        return f"it is for Python {lock.python}, builder.yaml for {spec.image.python}"
    if lock.platforms != platforms.of(spec.image):
        return f"it is for {' '.join(lock.platforms)}, builder.yaml for {' '.join(platforms.of(spec.image))}"
    return _stale_tools(lock, spec) or _stale_without(lock, spec)


def _stale_tools(lock: Lock, spec: Spec) -> str:
    held, wanted = tuple(tool.name for tool in lock.tools), tools(spec.image)
    if missing := [name for name in wanted if name not in held]:
        return f"image.prune needs {missing[0]} for its proof, which it does not hold"
    if more := [name for name in held if name not in wanted]:
        return f"it holds the tool {more[0]}, which builder.yaml has no use for"
    return ""


def _stale_without(lock: Lock, spec: Spec) -> str:
    wanted = {locks.normal(name) for name in spec.image.without}
    here = {one.partition("==")[0] for one in lock.without if one.endswith("(image.without)")}
    if missing := sorted(wanted - here):
        return f"image.without names {missing[0]}, which it does not leave out"
    if more := sorted(here - wanted):
        return f"it leaves out {more[0]}, which image.without does not name"
    return ""
