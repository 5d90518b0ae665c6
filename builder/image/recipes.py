"""What differs between inference engines: packages, imports, and what of them serving never reads. Everything else in
an image is the same stage graph, so that nodes share the layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from builder.config.spec import Image
from builder.errors import ConfigError

TORCH = {"5.23.0": "2.13.0"}
"""transformers release: the torch release that it is tested with here."""
TORCH_CUDA = {"2.13.0": "13"}
"""torch release: CUDA major of the wheels that the default package index serves under that version."""


VERSIONS = {"llama.cpp": "2026.10.11549", "transformers": "5.23.0"}
"""The engine release that a new builder.yaml names."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One engine in one image.

    requirements: exact pins, as pip reads them. imports: what the smoke stage imports, and what trim compiles.
    apt: system libraries. drop: globs below site-packages that serving never reads. env: the engine's own environment.
    min_driver_cuda: CUDA version that the node's driver must support; empty for a CPU image.
    """

    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    apt: tuple[str, ...] = ("libgomp1",)
    drop: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    min_driver_cuda: str = ""


def recipe(image: Image) -> Recipe:
    """The recipe of `image.engine`. Raises ConfigError for an engine or a combination that has none."""
    make = {"llama.cpp": _llama_cpp, "transformers": _transformers}.get(image.engine.name)
    if make is None:
        raise ConfigError(
            f"image.engine.name: {image.engine.name} has no image template; expected llama.cpp or transformers",
            hint="choose one of the two engines, or build that engine's image by other means",
        )
    return make(image)


def _llama_cpp(image: Image) -> Recipe:
    """xllamacpp: llama.cpp and its server as one extension module, for Python's stable ABI."""
    if image.cuda != "none":
        raise ConfigError(
            f'image.cuda: found "{image.cuda}"; expected "none": the llama.cpp wheel on the package index is for CPUs',
            hint='set image.cuda to "none", or use the transformers engine for a GPU',
        )
    return Recipe(requirements=(f"xllamacpp=={image.engine.version}",), imports=("xllamacpp",))


def _transformers(image: Image) -> Recipe:
    """transformers with its own OpenAI-compatible server, `transformers serve MODEL_FOLDER`."""
    torch = TORCH.get(image.engine.version)
    if torch is None:
        raise ConfigError(
            f"image.engine.version: transformers {image.engine.version} has no torch pinned; expected {', '.join(TORCH)}",
            hint="use that version, or add the pair to builder/image/recipes.py and run its image test",
        )
    cuda = "" if image.cuda == "none" else image.cuda
    if cuda and cuda.split(".")[0] != TORCH_CUDA[torch]:
        raise ConfigError(
            f'image.cuda: found "{cuda}"; torch {torch} is published for CUDA {TORCH_CUDA[torch]}',
            hint=f'set image.cuda to "{TORCH_CUDA[torch]}"',
        )
    return Recipe(
        # A version with +cpu exists on torch's own index only: the machine's pip settings or the wheelhouse must name it.
        # ===: a +cpu wheel in a wheelhouse would satisfy == and make a CUDA image without CUDA.
        requirements=(f"torch==={torch}" if cuda else f"torch=={torch}+cpu", f"transformers[serving]=={image.engine.version}"),
        imports=("torch", "transformers", "transformers.cli.transformers", "transformers.cli.serving.server"),
        # Headers, CMake files and protoc are for building against torch. torch_shm_manager stays: torch imports need it.
        # testing_utils.py holds a hub token of transformers' own tests; nothing outside them imports it.
        drop=(
            "transformers/testing_utils.py",
            "torch/include",
            "torch/share",
            "torch/bin/protoc*",
            "torch/test",
            "nvidia/*/include",
            "nvidia/*/*/include",
        ),
        min_driver_cuda=f"{cuda}.0" if cuda and "." not in cuda else cuda,
    )
