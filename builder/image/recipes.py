"""What differs between inference engines: packages, imports, system libraries. Everything else in an image is the same
stage graph, so that nodes share the layers.

Versions are the user's; `builder lock` finds out whether one exists and what it brings along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from builder.config.spec import Image
from builder.errors import ConfigError
from builder.image.lock import normal

TORCH = {"5.23.0": "2.13.0"}
"""transformers release: the torch release that it is tested with here. transformers names no torch of its own."""
VERSIONS = {
    "llama.cpp": "2026.10.11549",
    "transformers": "5.23.0",
    "vllm": "0.32.0",
    "sglang": "0.5.23",
    "tensorrt-llm": "1.2.1",
    "onnxruntime": "1.31.1",
    "triton": "0.7.0",
}
"""The engine release that a new builder.yaml names."""
SYSTEM = ("ca-certificates", "libgomp1", "libnuma1")
"""Debian packages of every image, so that all engines share one base layer: OpenMP (torch, llama.cpp), NUMA (SGLang)."""
COMPILER = ("gcc", "g++", "libc6-dev", "libpython3-dev")
"""What an engine compiles with at run time: Triton's launcher needs a C compiler and Python.h (triton/runtime/build.py
of triton 3.7.1), nvcc needs g++ for its host pass. nvcc itself comes with the engine's wheels."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One engine in one image.

    requirements: exact pins, as pip reads them.  engine: names of the wheels that are the engine itself.
    imports: modules that a start reads; the smoke stage imports them, and their bytecode is in the image.
    apt: system libraries beside SYSTEM.  env: the engine's own environment.
    without: wheels that are resolved but not installed, and why.  jit: it compiles kernels at run time.
    min_driver_cuda: CUDA version that the node's driver must support; empty for a CPU image.
    """

    requirements: tuple[str, ...]
    engine: tuple[str, ...]
    imports: tuple[str, ...]
    apt: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    jit: bool = False
    min_driver_cuda: str = ""


def recipe(image: Image) -> Recipe:
    """The recipe of `image.engine`. Raises ConfigError for a combination that has none."""
    return _RECIPES[image.engine.name](image)


def compiles(image: Image) -> bool:
    """Whether the image carries a compiler: image.jit, else as the engine needs it. Raises ConfigError for distroless."""
    wanted = recipe(image).jit if image.jit is None else image.jit
    if wanted and image.final == "distroless":
        raise ConfigError(
            f"image.final: distroless has no compiler, and {image.engine.name} compiles kernels at run time",
            hint="set image.jit to off, and bring compiled kernels with a cache; or image.final to slim",
        )
    return wanted


def _llama_cpp(image: Image) -> Recipe:
    """xllamacpp: llama.cpp and its server as one extension module, for Python's stable ABI."""
    if image.cuda != "none":
        raise ConfigError(
            f'image.cuda: found "{image.cuda}"; expected "none": the llama.cpp wheel on the package index is for CPUs',
            hint='set image.cuda to "none", or use the transformers engine for a GPU',
        )
    return Recipe((f"xllamacpp=={image.engine.version}",), engine=("xllamacpp",), imports=("xllamacpp",))


def _transformers(image: Image) -> Recipe:
    """transformers with its own OpenAI-compatible server, `transformers serve MODEL_FOLDER`."""
    torch = TORCH.get(image.engine.version)
    if torch is None:
        raise ConfigError(
            f"image.engine.version: transformers {image.engine.version} has no torch pinned; expected {', '.join(TORCH)}",
            hint="use that version, or add the pair to builder/image/recipes.py and run its image test",
        )
    cuda = image.cuda != "none"
    return Recipe(
        # A version with +cpu exists on torch's own index only: the machine's pip settings or the wheelhouse must name it.
        # ===: a +cpu wheel in a wheelhouse would satisfy == and make a CUDA image without CUDA.
        (f"torch==={torch}" if cuda else f"torch=={torch}+cpu", f"transformers[serving]=={image.engine.version}"),
        engine=("transformers",),
        imports=("torch", "transformers", "transformers.cli.transformers", "transformers.cli.serving.server"),
        min_driver_cuda=_driver(image),
    )


def _vllm(image: Image) -> Recipe:
    _gpu_only(image)
    return Recipe(
        (f"vllm=={image.engine.version}",),
        engine=("vllm",),
        imports=(
            *("vllm", "vllm.entrypoints.cli.main", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.async_llm"),
            *("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner"),  # what runs on the GPU is imported without one
        ),
        env={"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"},
        jit=True,
        min_driver_cuda=_driver(image),
    )


def _sglang(image: Image) -> Recipe:
    _gpu_only(image)
    return Recipe(
        (f"sglang=={image.engine.version}",),
        engine=("sglang",),
        imports=("sglang", "sglang.srt.server_args", "sglang.srt.entrypoints.http_server"),
        jit=True,
        min_driver_cuda=_driver(image),
    )


def _tensorrt_llm(image: Image) -> Recipe:
    """The wheels are on NVIDIA's own package index: image.index must name it. The default index holds a stub."""
    _gpu_only(image)
    return Recipe(
        (f"tensorrt-llm=={image.engine.version}",),
        engine=("tensorrt-llm", "tensorrt-cu13-libs", "tensorrt-cu12-libs"),
        imports=("torch", "transformers"),  # its own modules need libcuda.so.1, which no build has
        apt=("libopenmpi3",),
        min_driver_cuda=_driver(image),
    )


def _onnxruntime(image: Image) -> Recipe:
    """ONNX Runtime behind the runtime's own server (builder/runtime/onnxruntime.py); with CUDA, its libraries as wheels."""
    if image.cuda == "none":
        name, pin = "onnxruntime", f"onnxruntime=={image.engine.version}"
    else:
        name, pin = "onnxruntime-gpu", f"onnxruntime-gpu[cuda,cudnn]=={image.engine.version}"
    return Recipe((pin,), engine=(name,), imports=("numpy", "onnxruntime"), min_driver_cuda=_driver(image))


def _triton(image: Image) -> Recipe:
    """Triton Inference Server as nvidia-pytriton bundles it: the server, its HTTP and gRPC ends, the Python backend.

    That backend is linked against libpython, which Debian's python3 does not bring.
    """
    return Recipe(
        (f"nvidia-pytriton=={image.engine.version}",),
        engine=("nvidia-pytriton",),
        apt=(f"libpython{image.python}",),
        imports=("numpy", "pytriton"),
        min_driver_cuda=_driver(image),
    )


def _gpu_only(image: Image) -> None:
    if image.cuda == "none":
        raise ConfigError(
            f'image.cuda: found "none"; expected a version: the {image.engine.name} wheel is for GPUs',
            hint='set image.cuda to "13", or use the transformers or llama.cpp engine for CPUs',
        )


def _driver(image: Image) -> str:
    if image.cuda == "none":
        return ""
    return image.cuda if "." in image.cuda else f"{image.cuda}.0"


_RECIPES: dict[str, Callable[[Image], Recipe]] = {
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt_llm,
    "onnxruntime": _onnxruntime,
    "triton": _triton,
}


def names(pins: tuple[str, ...]) -> tuple[str, ...]:
    """Of requirements, the distributions' names.

    >>> names(("torch==2.13.0", "transformers[serving]==5.23.0"))
    ('torch', 'transformers')
    """
    return tuple(normal(pin.split("=")[0]) for pin in pins)
