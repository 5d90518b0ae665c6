"""Whether and how a build takes the GPU code of other chips out of an image's wheels. Pure.

The work is done by builder/slim inside the build, in the stage of each layer; here is what a description means for it: its
settings, the labels that say so, and the words for the person who builds.
"""

from __future__ import annotations

from typing import Any

from builder.config.spec import Image

CUOBJDUMP = "nvidia-cuda-cuobjdump==13.5.37"
"""NVIDIA's lister of GPU code, which proves each pruned file in the build: 0.3 MB, needs libc alone. It knows the code of
CUDA 12 and 13, and its wheels are for x86_64 and aarch64."""
TOOL = "cuobjdump"
"""Its section of the lock."""
CAUSE = "GPU code for other chips"
"""Under which LAYER.json counts what went: templates/image/steps/prune.py writes it."""
REDISTRIBUTION = "no: modified NVIDIA libraries"
WHY_NOT = (
    "image.prune is all: this image holds changed copies of NVIDIA's libraries, whose licences allow no changes; keep it to "
    f'yourself (label builder.redistribution="{REDISTRIBUTION}"). image.prune: oss leaves those libraries alone'
)
ALL_STAYS = (
    "image.gpu_archs is empty: the GPU code of all chips stays, in torch and its NVIDIA libraries 2.0 of 3.8 GB, of which one "
    'chip can use about 0.3; name the chips that will run the image, such as gpu_archs: ["9.0"]'
)


def prunes(image: Image) -> bool:
    """Whether a build takes GPU code out: where chips are named, for CPU engines too (image.packages may bring some)."""
    return bool(image.gpu_archs) and image.prune != "none"


def changes(image: Image) -> bool:
    """Whether a build changes libraries at all: it takes code out of them, or puts stubs in their places."""
    return prunes(image) or bool(image.stubs)


def settings(image: Image) -> dict[str, Any]:
    """What the prune step reads: steps/prune.json of the build folder. gpus: [] where only stubs are put in."""
    gpus = list(image.gpu_archs) if prunes(image) else []
    return {"gpus": gpus, "profile": image.prune, "stubs": list(image.stubs)}


def labels(image: Image) -> dict[str, str]:
    """Of an image that can hold GPU code; none for the others."""
    if image.cuda == "none" and not changes(image):
        return {}
    found: dict[str, str] = {"builder.prune": image.prune if prunes(image) else "none"}
    found |= {"builder.redistribution": REDISTRIBUTION} if found["builder.prune"] == "all" else {}
    return found | ({"builder.stubs": ",".join(image.stubs)} if image.stubs else {})


def remarks(image: Image) -> tuple[str, ...]:
    """What a person should know before the build, a line each."""
    if prunes(image):
        return (WHY_NOT,) if image.prune == "all" else ()
    return (ALL_STAYS,) if image.cuda != "none" and not image.gpu_archs else ()
