"""requirements.lock: every wheel of an image, pinned by sha256, in the order of the image's layers.

Plain pip requirements (`--require-hashes` reads them), one a line, under a comment that opens each layer:

    # Wheels of llama3-8b for Python 3.12, linux/amd64. Written by `builder lock`.
    # asks: vllm==0.32.0
    # without: nvidia-cutlass-dsl-libs-cu12==4.8.0 (for another CUDA)
    # layer: nvidia-cublas
    nvidia-cublas==13.1.1.3 --hash=sha256:4cb3... # 423.1 MB
    # tool: cuobjdump
    nvidia-cuda-cuobjdump==13.5.37 --hash=sha256:17a0... # 0.3 MB

Wheels under `# tool:` are run by a step of the build and are in no image. The layers stand in the lock so that a build needs
no index to cut them, and a review sees what moves. No index and no machine is named: the same lock builds from any mirror,
or from a wheelhouse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from builder.errors import ConfigError

HINT = "write it again: builder lock"
_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^#]*?))?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)(?: # (?P<size>[0-9.]+) MB)?"
)
_HEAD = re.compile(
    r"# Wheels of (?P<name>\S+) for Python (?P<python>3\.\d+), (?P<platforms>\S+( \S+)*)\. Written by `builder lock`\."
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One distribution. name: as the index compares it (PEP 503). sha256: one per platform. size: bytes, 0 if not known.

    marker: environment marker (PEP 508) where only some platforms need it.
    """

    name: str
    version: str
    sha256: tuple[str, ...]
    size: int = 0
    marker: str = ""

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"

    def requirement(self) -> str:
        """The line that pip reads."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.pin}{marker}" + "".join(f" --hash=sha256:{one}" for one in self.sha256)


@dataclass(frozen=True, slots=True)
class LockLayer:
    """Wheels that are installed, trimmed and shipped together. name: letters, digits and dashes; the stage is called after it.

    parts: layers of the image that its files are spread over, where one would be too large.
    """

    name: str
    wheels: tuple[Wheel, ...]
    parts: int = 1

    @property
    def size(self) -> int:
        """Bytes of the wheels as downloaded: about what the layer weighs compressed."""
        return sum(wheel.size for wheel in self.wheels)

    def requirements(self) -> str:
        return "".join(f"{wheel.requirement()}\n" for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class Lock:
    """name, python, platforms: what it was made for. asks: the pins that were resolved. layers: base first.

    without: what the engine's wheels ask for and the image leaves out, as `NAME==VERSION (why)`.
    tools: what a build step needs, and no image holds.
    """

    name: str
    python: str
    platforms: tuple[str, ...]
    asks: tuple[str, ...]
    layers: tuple[LockLayer, ...]
    without: tuple[str, ...] = ()
    tools: tuple[LockLayer, ...] = ()

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """Of the image; not the tools."""
        return tuple(wheel for layer in self.layers for wheel in layer.wheels)

    def find(self, name: str) -> Wheel | None:
        return next((wheel for wheel in self.wheels if wheel.name == normal(name)), None)

    def to_json(self) -> dict[str, Any]:
        layers = [
            {
                "name": one.name,
                "parts": one.parts,
                "bytes": one.size,
                "wheels": [{"pin": w.pin, "bytes": w.size} for w in one.wheels],
            }
            for one in self.layers
        ]
        own = {
            "name": self.name,
            "python": self.python,
            "platforms": list(self.platforms),
            "asks": list(self.asks),
            "without": list(self.without),
        }
        tools = [{"name": one.name, "wheels": [w.pin for w in one.wheels]} for one in self.tools]
        return own | {"packages": len(self.wheels), "layers": layers, "tools": tools}


def normal(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503), extras dropped.

    >>> normal("Ruamel_yaml.clib[x]")
    'ruamel-yaml-clib'
    """
    return re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()


def text(lock: Lock) -> str:
    """The file's text; `read` gives the same lock back."""
    lines = [f"# Wheels of {lock.name} for Python {lock.python}, {' '.join(lock.platforms)}. Written by `builder lock`."]
    lines += [f"# asks: {ask}" for ask in lock.asks]
    lines += [f"# without: {one}" for one in lock.without]
    for layer in lock.layers:
        lines += [f"# layer: {layer.name}" + (f", {layer.parts} parts" if layer.parts > 1 else ""), *_wheels(layer)]
    for tool in lock.tools:
        lines += [f"# tool: {tool.name}", *_wheels(tool)]
    return "\n".join(lines) + "\n"


def read(body: str, at: str) -> Lock:
    """The lock in `body`. at: its path, for errors. Raises ConfigError that names the first wrong line."""
    lines = body.splitlines()
    head = _HEAD.fullmatch(lines[0]) if lines else None
    if head is None:
        raise ConfigError(
            f"{at}:1: not a lock of this version; expected `# Wheels of NAME for Python 3.N, PLATFORM. ...`", hint=HINT
        )
    asks: list[str] = []
    without: list[str] = []
    layers: list[tuple[str, int, list[Wheel]]] = []
    tools: list[tuple[str, int, list[Wheel]]] = []
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("# asks: "):
            asks.append(line.removeprefix("# asks: "))
        elif line.startswith("# without: "):
            without.append(line.removeprefix("# without: "))
        elif match := re.fullmatch(r"# layer: ([a-z0-9][a-z0-9-]*)(?:, ([1-9][0-9]?) parts)?", line):
            layers.append((match[1], int(match[2] or 1), []))
        elif match := re.fullmatch(r"# tool: ([a-z0-9][a-z0-9-]*)", line):
            tools.append((match[1], 1, []))
        elif (match := _LINE.fullmatch(line)) and (tools or layers):
            (tools or layers)[-1][2].append(_wheel(match))
        else:
            raise ConfigError(f"{at}:{number}: expected NAME==VERSION --hash=sha256:..., found {line[:60]!r}", hint=HINT)
    known = (head["name"], head["python"], tuple(head["platforms"].split()))
    found = Lock(*known, tuple(asks), tuple(_layers(layers)), tuple(without), tuple(_layers(tools)))
    names = [wheel.name for wheel in found.wheels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{at}: {twice[0]} is there twice", hint=HINT)
    return found


def _wheels(layer: LockLayer) -> list[str]:
    return [w.requirement() + (f" # {w.size / 1e6:.1f} MB" if w.size >= 50_000 else "") for w in layer.wheels]


def _wheel(match: re.Match[str]) -> Wheel:
    hashes = tuple(re.findall(r"sha256:([0-9a-f]{64})", match["hashes"]))
    size = round(float(match["size"]) * 1e6) if match["size"] else 0
    return Wheel(normal(match["name"]), match["version"], hashes, size, (match["marker"] or "").strip())


def _layers(found: Iterable[tuple[str, int, list[Wheel]]]) -> Iterable[LockLayer]:
    return (LockLayer(name, tuple(wheels), parts) for name, parts, wheels in found)
