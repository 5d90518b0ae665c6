"""One folder for everything that engines compile at run time, and the variables that lead them there. Pure.

Left alone they write to ~/.cache, ~/.triton, ~/.tilelang, ~/.humming and /tmp, some under the user's name; none of that can
be captured or mounted as one, and what lies in /tmp is lost with the pod. The folders are below ROOT, one for each variable.

`source` of an entry is the package, version and file that reads the variable; then where its files lie without it.
What XDG_CACHE_HOME leads to stays in the home: the hub's downloads lie there too, and they are no compile cache.
FLASHINFER_CUBIN_DIR is not set on purpose: it would take precedence over the cubins of an installed flashinfer-cubin wheel,
and its default is below FLASHINFER_WORKSPACE_BASE.
"""

from __future__ import annotations

from dataclasses import dataclass

from builder.config.spec import Image
from builder.errors import ConfigError
from builder.format.compiled import ROOT, Fingerprint

CUDA_CACHE_BYTES = 4 << 30
"""What the driver keeps of PTX that it compiled, at most; past it the oldest go. This is the most that it takes; its default is
256 MiB before CUDA 12, and 1 GiB since. Source: CUDA Programming Guide, Environment Variables; not measured here."""

TORCH = ("vllm", "sglang", "transformers", "tensorrt-llm")
KERNELS = ("vllm", "sglang", "tensorrt-llm")


@dataclass(frozen=True, slots=True)
class Cache:
    """One variable. folder: below ROOT.  engines: those whose packages read it; empty: every image for GPUs."""

    variable: str
    folder: str
    engines: tuple[str, ...]
    source: str

    @property
    def path(self) -> str:
        return f"{ROOT}/{self.folder}"


CACHES = (
    Cache("CUDA_CACHE_PATH", "cuda", (), "CUDA Programming Guide, Environment Variables; default ~/.nv/ComputeCache"),
    Cache("TORCHINDUCTOR_CACHE_DIR", "inductor", TORCH, "torch 2.13.0, _inductor/runtime/cache_dir_utils.py; TMPDIR"),
    Cache("TRITON_CACHE_DIR", "triton", TORCH, "triton 3.7.1, knobs.py; ~/.triton/cache"),
    Cache("TORCH_EXTENSIONS_DIR", "torch-extensions", TORCH, "torch 2.13.0, utils/cpp_extension.py; ~/.cache/torch_extensions"),
    Cache("VLLM_CACHE_ROOT", "vllm", ("vllm",), "vllm 0.32.0, envs.py; XDG_CACHE_HOME/vllm. Its Inductor folder is below it"),
    Cache("SGLANG_CACHE_DIR", "sglang", ("sglang",), "sglang 0.5.23, srt/environ.py; ~/.cache/sglang. DeepGEMM is below it"),
    Cache("SGLANG_JIT_CACHE_DIR", "sglang-jit", ("sglang",), "sglang 0.5.23, kernels/jit/utils/compile/cache.py"),
    Cache("DG_JIT_CACHE_DIR", "deep-gemm", KERNELS, "vllm 0.32.0, utils/deep_gemm.py; sglang sets it below its own folder"),
    Cache("TRTLLM_DG_CACHE_DIR", "trtllm-deep-gemm", KERNELS, "flashinfer 0.7.0 and TensorRT-LLM, compiler.cuh; HOME"),
    Cache("TLLM_LLMAPI_BUILD_CACHE_ROOT", "tensorrt-llm", ("tensorrt-llm",), "TensorRT-LLM, llmapi/build_cache.py; /tmp"),
    Cache("FLASHINFER_WORKSPACE_BASE", "flashinfer", KERNELS, "flashinfer 0.7.0, jit/env.py; HOME, .cache/flashinfer"),
    Cache("TILELANG_CACHE_DIR", "tilelang", KERNELS, "tilelang 0.1.12, env.py; ~/.tilelang/cache"),
    Cache("TVM_FFI_CACHE_DIR", "tvm-ffi", KERNELS, "apache-tvm-ffi 0.1.11, cpp/extension.py; ~/.cache/tvm-ffi"),
    Cache("CUTE_DSL_CACHE_DIR", "cute-dsl", KERNELS, "nvidia-cutlass-dsl 4.8.0, base_dsl/cache_helpers.py; TMPDIR"),
    Cache("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", "flash-attention", KERNELS, "vllm 0.32.0, vllm_flash_attn/cute; TMPDIR"),
    Cache("QUACK_CACHE_DIR", "quack", KERNELS, "quack-kernels 0.6.5 and torch 2.13.0, quack/cache/__init__.py"),
    Cache("CUDA_TILE_CACHE_DIR", "cutile", KERNELS, "cuda-tile 1.7.0, cutile_cache/_env.py; XDG_CACHE_HOME/cutile-python"),
    Cache("HUMMING_CACHE_DIR", "humming", ("vllm",), "humming-kernels 0.1.17, utils/jit.py; ~/.humming/cache"),
    Cache("MINFER_FMHA_CACHE_DIR", "minfer", ("vllm",), "vllm 0.32.0, third_party/fmha_sm100/jit.py; ~/.cache/minfer"),
    Cache("CUDNN_FRONTEND_COMPILED_CACHE", "cudnn-frontend", KERNELS, "cudnn-frontend 1.32.0, frost/compiled_cache.py; XDG"),
    Cache("CUDNN_FRONTEND_CAKE_CACHE_DIR", "cudnn-cake", KERNELS, "cudnn-frontend 1.32.0, linear_attention/cake; XDG"),
    Cache("FLEX_ATTENTION_CUTE_DSL_CACHE_DIR", "cudnn-flex", KERNELS, "cudnn-frontend 1.32.0, flex_attention/runtime; TMPDIR"),
    Cache("NUMBA_CACHE_DIR", "numba", KERNELS, "numba 0.65.0, core/config.py; beside the source, which is read-only here"),
)  # fmt: skip


def environment(image: Image) -> dict[str, str]:
    """The variables of this image's engine; none where nothing of it ever compiles."""
    gpu = image.cuda != "none"
    mine = {c.variable: c.path for c in CACHES if (image.engine.name in c.engines if c.engines else gpu)}
    if not mine:
        return {}
    more = {"CUDA_CACHE_MAXSIZE": str(CUDA_CACHE_BYTES)} if gpu else {}
    return {"BUILDER_COMPILE_CACHE_ROOT": ROOT, **mine, **more}


def refuse_other(image: Image, cache: Fingerprint, lock: str, manifest: str) -> None:
    """Raises ConfigError if no start of this image would use the captured cache. lock, manifest: digests; manifest may be "".

    A cache captured with the engine `command` is not compared by engine: any image's engine may be started so.
    """
    if not environment(image):
        raise ConfigError(
            f"image.compile_cache: {image.engine.name} with cuda: {image.cuda} compiles nothing",
            hint="remove image.compile_cache",
        )
    engine = cache.fields.get("engine", "").partition(" ")[0]
    here = {"lock": lock, "root": ROOT, "engine": engine if engine == "command" else image.engine.name}
    if manifest:
        here["model"] = f"sha256:{manifest.removeprefix('sha256:')}"
    wrong = Fingerprint({name: engine if name == "engine" else cache.fields.get(name, "") for name in here}).differences(
        Fingerprint(here)
    )
    if wrong:
        hint = "capture one from this image's server: builder cache capture"
        raise ConfigError(f"image.compile_cache: for another image: {'; '.join(wrong)}", hint=hint)
