"""Settings of the program inside the image, from environment variables. Nothing else here reads the environment.

A wrong value is refused before anything starts: exit 2, naming the variable, what it holds and what it should.
Credentials (AWS_* and their like) are not read here: the libraries that use them read them, and the engine inherits
the environment unchanged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from builder.errors import ConfigError
from builder.format import secret
from builder.format.manifest import NAME, is_digest
from builder.format.volume import MODELS_ROOT

if TYPE_CHECKING:
    from builder.transfer.cache import Budget

CONTROL_PORT = "8001"
COMPILE_CACHE_DIR = "/opt/builder/compile-cache"
ENGINES = ("llama.cpp", "transformers", "vllm", "sglang", "tensorrt-llm", "onnxruntime", "triton", "command")
# Read by the CUDA driver and by container runtimes; reported beside the phases, because they change how long a start takes.
# What engines, compilers and their libraries read: a captured compile cache is for the same values of these. Where something
# lies, what is logged, a secret, and what differs from pod to pod is not among them. NAMED are read whatever they begin with.
COMPILED_BY = (
    "VLLM_",
    "SGLANG_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "FLASHINFER_",
    "TILELANG_",
    "DG_",
    "CUDA_",
    "NVCC_",
    "CUDNN_",
    "ATEN_",
    "TLLM_",
    "TRTLLM_",
    "NUMBA_",
    "CUTE_DSL_",
    "QUACK_",
    "TVM_FFI_",
)
NAMED = (
    "NVIDIA_TF32_OVERRIDE",
    "HOME",
    "XDG_CACHE_HOME",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
)
PASSING = re.compile(
    r"_LOG(S|GING|GER|LEVEL|DEST|INFO|ERR|WARN)?(_|$)|_(PORT|HOST|HOSTNAME|ADDR|IP)(_|$)|(?<!_PER)_RANK(_LOCAL)?$|_TRACE$"
    r"|USAGE_STATS|DO_NOT_TRACK|VISIBLE_DEVICES|SIDE_CHANNEL|_UUID|_REQUIRE_|_RPC_BASE_PATH|PROFILER_DIR|INSTANCE_ID|_RUN_ID"
    r"|TORCHELASTIC_"
)
REPORTED = (
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "HF_HUB_OFFLINE",
)

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """One start. Field names are the variables' names without BUILDER_, in lower case.

    models_root: folders searched in order, `:` between them; a fetch goes to the first that can be written.
    cache_size: what the root that is fetched to may take (200GiB, 80%): models that are not in use make room. None: no limit,
    and nothing is ever removed.
    verify_full: read every byte of a model that is already there, instead of comparing sizes.
    warmup_s: seconds at most for all warm-up shapes together.
    grace_s: seconds between the forwarded signal and SIGKILL.  ready_timeout_s: for the engine to answer its health check.
    gpu: required refuses to start where the image cannot run; auto only measures a GPU that is there; none never looks.
    gpu_archs: compute capabilities that the image has code for; empty: any.  cuda: version the driver must support, or "".
    gpu_timeout_s: for the driver to name its devices.
    reported: the REPORTED variables that are set.
    compile_cache: require, use or off.  compile_cache_root: where the engine's compile caches lie; None: the image has no
    such folder.  compile_cache_dir: a captured cache, baked or mounted.  compile_cache_store, _name: where else to look.
    lock: digest of the image's wheels, or "".  compile_env: variables that decide what is compiled (COMPILED_BY, NAMED).
    compile_paths: variables that lead into the cache root.
    """

    store: str
    endpoint_url: str
    region: str
    model: str
    models_root: tuple[Path, ...]
    cache_size: Budget | None
    verify_full: bool
    concurrency: int
    engine: str
    engine_args: tuple[str, ...]
    host: str
    port: int
    control_port: int
    queue: bool
    queue_limit: int
    warmup_batch: tuple[int, ...]
    warmup_tokens: tuple[int, ...]
    warmup_s: float
    phases: Path | None
    grace_s: float
    ready_timeout_s: float
    gpu: str
    gpu_archs: tuple[str, ...]
    cuda: str
    gpu_timeout_s: float
    reported: Mapping[str, str]
    compile_cache: str
    compile_cache_root: Path | None
    compile_cache_dir: Path
    compile_cache_store: str
    compile_cache_name: str
    lock: str
    compile_env: Mapping[str, str]
    compile_paths: Mapping[str, str]

    def named(self, model: str) -> Settings:
        """The same, with captured caches looked for under the model's name unless another was given."""
        return self if self.compile_cache_name else replace(self, compile_cache_name=model)


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environ` (default: this process's). Raises ConfigError that names the first wrong variable."""
    env = os.environ if environ is None else environ

    def get(name: str, default: str, parse: Callable[[str], T]) -> T:
        text = env.get("BUILDER_" + name, "").strip() or default
        try:
            return parse(text)
        except ValueError as exc:
            raise ConfigError(f"BUILDER_{name}={text!r}: {exc}", hint=f"correct or unset BUILDER_{name}") from exc

    settings = Settings(
        store=get("STORE", "", _url("BUILDER_STORE")),
        endpoint_url=get("ENDPOINT_URL", "", _url("BUILDER_ENDPOINT_URL")),
        region=get("REGION", "", str),
        model=get("MODEL", "", model_ref),
        models_root=get("MODELS_ROOT", MODELS_ROOT, _paths),
        cache_size=get("CACHE_SIZE", "", _budget),
        verify_full=get("VERIFY", "size", _one_of("size", "full")) == "full",
        concurrency=get("CONCURRENCY", "0", _count(0, 256)),
        engine=get("ENGINE", "llama.cpp", _one_of(*ENGINES)),
        engine_args=get("ENGINE_ARGS", "[]", _strings),
        host=get("HOST", "0.0.0.0", str),
        port=get("PORT", "8000", _port),
        control_port=get("CONTROL_PORT", CONTROL_PORT, _port),
        queue=get("QUEUE", "1", _switch),
        queue_limit=get("QUEUE_LIMIT", "256", _count(1, 100_000)),
        warmup_batch=get("WARMUP_BATCH", "1", _counts(1024)),
        warmup_tokens=get("WARMUP_TOKENS", "32", _counts(1 << 20)),
        warmup_s=get("WARMUP_S", "60", _seconds),
        phases=get("PHASES", "", _file),
        grace_s=get("GRACE_S", "25", _seconds),
        ready_timeout_s=get("READY_TIMEOUT_S", "3600", _seconds),
        gpu=get("GPU", "auto", _one_of("auto", "required", "none")),
        gpu_archs=get("GPU_ARCHS", "", _capabilities),
        cuda=get("CUDA", "", _cuda),
        gpu_timeout_s=get("GPU_TIMEOUT_S", "120", _seconds),
        reported={name: env[name] for name in REPORTED if name in env},
        compile_cache=get("COMPILE_CACHE", "use", _one_of("require", "use", "off")),
        compile_cache_root=get("COMPILE_CACHE_ROOT", "", _folder),
        compile_cache_dir=get("COMPILE_CACHE_DIR", COMPILE_CACHE_DIR, _paths)[0],
        compile_cache_store=get("COMPILE_CACHE_STORE", "", _url("BUILDER_COMPILE_CACHE_STORE")),
        compile_cache_name=get("COMPILE_CACHE_NAME", "", _name),
        lock=get("LOCK", "", str),
        compile_env={name: env[name] for name in sorted(env) if _compiles(name)},
        compile_paths=_leading(env, env.get("BUILDER_COMPILE_CACHE_ROOT", "").strip()),
    )
    if settings.port == settings.control_port:
        raise ConfigError(
            f"BUILDER_PORT and BUILDER_CONTROL_PORT are both {settings.port}", hint="set BUILDER_CONTROL_PORT to another port"
        )
    return settings


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `more` in it, for a child."""
    return {**os.environ, **more}


def control_port() -> int:
    """BUILDER_CONTROL_PORT alone, for the exec probe. Raises ConfigError."""
    text = os.environ.get("BUILDER_CONTROL_PORT", "").strip() or CONTROL_PORT
    try:
        return _port(text)
    except ValueError as exc:
        raise ConfigError(f"BUILDER_CONTROL_PORT={text!r}: {exc}", hint="correct or unset BUILDER_CONTROL_PORT") from exc


def check_ref(text: str) -> str:
    """`text` itself, if it names a model. Raises ConfigError."""
    try:
        return model_ref(text)
    except ValueError as exc:
        raise ConfigError(f"model {text!r}: {exc}") from None


def model_ref(text: str) -> str:
    """`text` itself, if it is empty, a name, `name@revision` or `sha256:<hex>`. Raises ValueError."""
    name, at, revision = text.partition("@")
    if text and not is_digest(text) and not (NAME.match(name) and (not at or NAME.match(revision))):
        raise ValueError("expected a name, name@revision or sha256:<64 hex digits>")
    return text


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}")
        return text

    return parse


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)

    return parse


def _port(text: str) -> int:
    return _count(1, 65535)(text)


def _url(name: str) -> Callable[[str], str]:
    """A folder, or a URL without credentials: settings are shown by `kubectl describe` and kept in image layers."""

    def parse(text: str) -> str:
        scheme, is_url, rest = text.partition("://")
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        # Buckets have no ":"; a secret key may hold a "/", which hides its "@" in what looks like the path.
        if is_url and ("@" in host or (scheme in ("s3", "gs", "az") and ":" in host)):
            raise ConfigError(  # the value is not repeated, for it may be a secret
                f"{name}: the {scheme}:// URL has credentials in it (an '@' or ':' in its host); expected none",
                hint="give them in their own variables, such as AWS_ACCESS_KEY_ID, or by the role of the machine or pod",
            )
        return text

    return parse


def _file(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    try:
        fits = path.parent.is_dir() and not path.is_dir()
    except OSError:  # a folder on the way that this user may not search
        fits = False
    if not fits:
        raise ValueError("expected a file in a folder that exists")
    return path


def _counts(high: int) -> Callable[[str], tuple[int, ...]]:
    one = _count(1, high)

    def parse(text: str) -> tuple[int, ...]:
        return tuple(one(part.strip()) for part in text.split(","))

    return parse


def _capabilities(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",")) if text else ()
    if not all(re.fullmatch(r"[0-9]{1,3}\.[0-9]", part) for part in parts):
        raise ValueError("expected compute capabilities such as 9.0,8.0")
    return parts


def _cuda(text: str) -> str:
    if text and not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?", text):
        raise ValueError("expected a CUDA version such as 13.0")
    return text


def _compiles(name: str) -> bool:
    return name in NAMED or (name.startswith(COMPILED_BY) and not PASSING.search(name) and not secret.is_name(name))


def _leading(env: Mapping[str, str], root: str) -> dict[str, str]:
    root = root.rstrip("/")
    found = {name: value for name, value in env.items() if root and value.startswith(f"{root}/")}
    return {name: value for name, value in found.items() if not name.startswith("BUILDER_")}


def _name(text: str) -> str:
    if text and not NAME.match(text):
        raise ValueError("expected a name: letters, digits, '.', '_' and '-'")
    return text


def _folder(text: str) -> Path | None:
    return _paths(text)[0] if text else None


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400:
        raise ValueError("expected seconds, more than 0 and at most 86400")
    return value


def _paths(text: str) -> tuple[Path, ...]:
    paths = tuple(Path(part) for part in text.split(":") if part)
    if not paths or not all(path.is_absolute() for path in paths):
        raise ValueError("expected an absolute folder, or several with ':' between them")
    return paths


def _budget(text: str) -> Budget | None:
    if not text:
        return None
    from builder.transfer.cache import Budget

    return Budget.parse(text)


def _strings(text: str) -> tuple[str, ...]:
    try:
        raw: Any = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"expected a JSON list of strings: {exc}") from None
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError('expected a JSON list of strings, such as ["--ctx-size", "4096"]')
    return tuple(raw)
