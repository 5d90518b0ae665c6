"""Which wheel goes into which layer of an image. Pure.

Order: runtime, nvidia, torch, dependencies, engine; what changes often comes last. A wheel of 100 MB or more is a layer
of its own, so that the layer depends on nothing but that wheel: every image with the same wheel has the same layer,
digest for digest, and a node holds it once. Smaller ones of torch's own closure share a layer, for the same reason; the
rest is packed into layers of about equal size. A container engine fetches layers in parallel and unpacks each on one
core, so one large layer is the slowest way to ship the same bytes (containerd pulls 3 layers at a time by default, and
zstd unpacks at about 1.2 GB/s a core; measured, research of slim images, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

from builder.image.lock import LockLayer, Wheel

ALONE = 100_000_000
"""Bytes of a wheel that make it a layer of its own."""
MOST = 400_000_000
"""Bytes of a layer, compressed, above which it is spread over several."""
PACKED = 0.97
"""zstd -3 of what a layer keeps against its wheels (deflate), at most: 410 of 423 MB for nvidia-cublas 13.1, all of it
compressed GPU code; other layers of vLLM 0.32.0 are at 0.6 to 0.9."""
FULL = 300_000_000
"""Bytes of wheels that packing aims at."""
_NVIDIA = ("nvidia-", "cuda-")


def cut(
    wheels: Iterable[Wheel], *, runtime: Collection[str], torch: Collection[str], engine: Collection[str]
) -> tuple[LockLayer, ...]:
    """Each wheel in exactly one layer, layers base first.

    runtime, torch, engine: names of builder's own wheels, of what torch alone would install, of the engine itself.
    """
    left = {wheel.name: wheel for wheel in sorted(wheels, key=lambda one: one.name)}

    def take(belongs: Callable[[Wheel], bool]) -> list[Wheel]:
        return [left.pop(name) for name in [n for n, wheel in left.items() if belongs(wheel)]]

    layers = _pool("runtime", take(lambda w: w.name in runtime))
    own = take(lambda w: w.name in engine)
    closure = take(lambda w: w.name in torch)
    nvidia = [w for w in closure if w.name.startswith(_NVIDIA)]
    layers += _alone(nvidia) + _pool("nvidia", _small(nvidia))
    others = [w for w in closure if w not in nvidia]
    layers += _pool("torch-deps", _small(others)) + _alone(others)
    rest = take(lambda w: True)
    layers += _alone(rest) + _packed("deps", _small(rest))
    return (*layers, *(_pool("engine", own) if len(own) == 1 else [*_alone(own), *_pool("engine", _small(own))]))


def _small(wheels: Sequence[Wheel]) -> list[Wheel]:
    return [wheel for wheel in wheels if wheel.size < ALONE]


def _alone(wheels: Sequence[Wheel]) -> list[LockLayer]:
    return [LockLayer(wheel.name, (wheel,), parts(wheel.size)) for wheel in wheels if wheel.size >= ALONE]


def _pool(name: str, wheels: Sequence[Wheel]) -> list[LockLayer]:
    return [LockLayer(name, tuple(wheels), parts(sum(wheel.size for wheel in wheels)))] if wheels else []


def _packed(name: str, wheels: Sequence[Wheel]) -> list[LockLayer]:
    """As many layers as FULL asks for, the largest wheel first into the lightest: balanced within one wheel."""
    if not wheels:
        return []
    bins: list[list[Wheel]] = [[] for _ in range(math.ceil(sum(wheel.size for wheel in wheels) / FULL) or 1)]
    for wheel in sorted(wheels, key=lambda one: (-one.size, one.name)):
        min(bins, key=lambda held: sum(one.size for one in held)).append(wheel)
    names = [name] if len(bins) == 1 else [f"{name}-{number}" for number in range(1, len(bins) + 1)]
    return [LockLayer(at, tuple(sorted(held, key=lambda one: one.name))) for at, held in zip(names, bins, strict=True)]


def parts(size: int) -> int:
    """Layers that wheels of `size` bytes need.

    >>> parts(423_100_000), parts(526_600_000), parts(366_200_000)
    (2, 2, 1)
    """
    return max(1, math.ceil(size * PACKED / MOST))
