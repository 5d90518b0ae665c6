"""builder.yaml to the text of a Dockerfile. Pure: the same description makes the same bytes; only templates are read."""

from __future__ import annotations

import hashlib
import json
import re
from urllib.parse import urlsplit

from builder import __version__, render
from builder.config.spec import SECRET_LOOK, Spec
from builder.errors import ConfigError
from builder.image import caches, pruning
from builder.image import lock as locks
from builder.image.lock import Lock
from builder.image.recipes import COMPILER, SYSTEM, Recipe, compiles, recipe

HOME = "/home/app"
MODELS_ROOT = "/var/lib/builder/models"
EPOCH = 315_532_800
"""1980-01-01, the time of every file and of the image: the earliest that zip files, and so wheels, can hold."""
RUNTIME_PINS = ("awscrt==0.38.1", "obstore==0.12.1", "typing_extensions==4.16.0")
"""The wheels of the shipped runtime (typing_extensions is obstore's). The same in every image: one shared layer."""
RUNTIME_LAYER = "runtime"
"""The layer of those wheels. It holds no GPU code, and so is made in the same way whether an image prunes or not."""
SECRET_NAME = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|CREDENTIALS?|TOKEN|API_?KEY|ACCESS_?KEY(_ID)?)(_|$)", re.IGNORECASE)
"""Names whose value is a secret by convention."""
USERINFO = re.compile(r"://[^/@\s]+:[^/@\s]+@")
APT_SECRETS = ("ca", "apt_sources", "apt_auth")
PIP_SECRETS = ("ca", "pip_conf", "netrc")
DEV = ("curl", "gdb", "less", "procps", "strace", "vim-tiny")
"""What a `dev` image has beyond the others: for looking into a process that serves."""
REMOTE = ("s3", "gs", "az", "http", "https")
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def dockerfile(spec: Spec, lock: Lock, *, manifest: str = "", cache_key: str = "", link: bool = True) -> str:
    """The Dockerfile of `spec`. manifest: digest of the weights where builder.lock knows it, "sha256:..." or bare hex.

    cache_key: fingerprint of the compile cache that is baked in; "" for none.
    link: whether the back end knows `COPY --link`, with which a layer does not depend on those below it.
    Raises ConfigError for a combination without a recipe, and for a value that a Dockerfile or an image must not hold.
    """
    image, plan = spec.image, recipe(spec.image)
    python_image = bool(re.match(r"(.*/)?python:", image.base))  # the official image: its own Python, outside dpkg
    debian_python = () if python_image else ("libpython3-stdlib", "python3")
    compiler = tuple(name for name in COMPILER if not (python_image and name == "libpython3-dev")) if compiles(image) else ()
    extra = sorted(name for name in plan.apt if not (python_image and name.startswith("libpython")))
    env = environment(spec, plan, lock, manifest)
    labels = _labels(spec, plan, lock, manifest, cache_key)
    _refuse(env, "environment")
    _refuse(labels, "label")
    return render.text(
        "image/stages.Dockerfile.j2",
        name=spec.name,
        engine=image.engine,
        base=image.base,
        python=image.python,
        cuda_text=f"CUDA {image.cuda}" if plan.min_driver_cuda else "for CPUs",
        apt=sorted({*SYSTEM, *debian_python}),
        extra=extra,
        build_apt=["binutils"] if python_image else ["binutils", "python3-venv"],
        dev_apt=DEV if python_image else ("python3-venv", *DEV),
        apt_secrets=APT_SECRETS,
        pip_secrets=PIP_SECRETS,
        index="index" if image.index else "no-index",
        layers=lock.layers,
        prunes=pruning.prunes(image),
        changes=pruning.changes(image),
        unpruned=RUNTIME_LAYER,
        link="--link " if link else "",
        compiler=compiler,
        final=image.final,
        parent="scratch" if image.final == "distroless" else "compiler" if compiler else "system" if extra else "base",
        stage="final" if image.final == "slim" else f"final-{image.final}",
        imports=list(plan.imports),
        env=env,
        labels=labels,
        ports=[spec.serve.port, spec.serve.control_port],
        home=HOME,
        epoch=EPOCH,
        compile_cache=bool(cache_key),
    )


def environment(spec: Spec, plan: Recipe, lock: Lock, manifest: str = "") -> dict[str, str]:
    """Environment of the final image: what an image without an NVIDIA parent needs, the runtime's settings, then image.env.

    NVIDIA_*: the container toolkit injects nothing unless they are set (nvidia-container-toolkit, cuda_image.go).
    """
    serve = spec.serve
    env = {
        "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": "/opt/builder",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": HOME,
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "CUDA_MODULE_LOADING": "LAZY",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }
    if plan.min_driver_cuda:
        env["NVIDIA_REQUIRE_CUDA"] = f"cuda>={plan.min_driver_cuda}"
    env |= {
        "BUILDER_GPU": "required" if plan.min_driver_cuda else "none",
        "BUILDER_GPU_ARCHS": ",".join(spec.image.gpu_archs),
        "BUILDER_CUDA": plan.min_driver_cuda,
        "BUILDER_JIT": "on" if compiles(spec.image) else "off",
    }
    if spec.image.final == "distroless":  # one file, and no links by hash beside it
        env["SSL_CERT_FILE"] = "/etc/ssl/certs/ca-certificates.crt"
    if compiles(spec.image) and plan.min_driver_cuda:  # FlashInfer and nvcc's own profile look there
        toolkit = f"/opt/venv/lib/python{spec.image.python}/site-packages/nvidia/cu{spec.image.cuda.split('.')[0]}"
        env |= {"CUDA_HOME": toolkit, "PATH": f"{env['PATH']}:{toolkit}/bin"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"} | plan.env
    env |= _store(spec)
    if compiled := caches.environment(spec.image):
        env |= compiled | {"BUILDER_LOCK": lock_digest(lock)}
    return env | {
        "BUILDER_MODEL": _digest(manifest) or spec.name,
        "BUILDER_MODELS_ROOT": MODELS_ROOT,
        "BUILDER_ENGINE": spec.image.engine.name,
        "BUILDER_ENGINE_ARGS": json.dumps(list(serve.args)),
        "BUILDER_PORT": str(serve.port),
        "BUILDER_CONTROL_PORT": str(serve.control_port),
        "BUILDER_QUEUE": "1" if serve.queue else "0",
        "BUILDER_QUEUE_LIMIT": str(serve.queue_limit),
        "BUILDER_WARMUP_BATCH": ",".join(map(str, serve.warmup.batch)),
        "BUILDER_WARMUP_TOKENS": ",".join(map(str, serve.warmup.tokens)),
        **spec.image.env,
    }


def _store(spec: Spec) -> dict[str, str]:
    """BUILDER_STORE and its endpoint, where a pod could reach them: not a folder, and not this machine."""
    if urlsplit(spec.weights.store).scheme not in REMOTE:
        return {}
    found = {"BUILDER_STORE": spec.weights.store}
    endpoint = spec.weights.endpoint_url or ""
    if endpoint and urlsplit(endpoint).hostname not in LOOPBACK:
        found["BUILDER_ENDPOINT_URL"] = endpoint
    if spec.weights.region:
        found["BUILDER_REGION"] = spec.weights.region
    return found


def _labels(spec: Spec, plan: Recipe, lock: Lock, manifest: str, cache_key: str) -> dict[str, str]:
    image = spec.image
    labels = {
        "org.opencontainers.image.title": spec.name,
        "org.opencontainers.image.version": image.tag,
        "org.opencontainers.image.base.name": image.base,
        "builder.engine": f"{image.engine.name} {image.engine.version}",
        "builder.cuda": plan.min_driver_cuda or "none",
        "builder.gpu-archs": ",".join(image.gpu_archs),
        **pruning.labels(image),
        "builder.jit": "on" if compiles(image) else "off",
        "builder.lock": lock_digest(lock),
        "builder.manifest": _digest(manifest),
        "builder.cache-fingerprint": cache_key,
        "builder.tool": __version__,
    }
    return {key: value for key, value in (labels | image.labels).items() if value}


def lock_digest(lock: Lock) -> str:
    """Of every wheel and its version: what kernels are compiled with."""
    return f"sha256:{hashlib.sha256(locks.text(lock).encode()).hexdigest()}"


def _digest(manifest: str) -> str:
    return f"sha256:{manifest}" if re.fullmatch(r"[0-9a-f]{64}", manifest) else manifest


def _refuse(values: dict[str, str], what: str) -> None:
    """No secret and no line break: an image is public to whoever can pull it."""
    for key, value in values.items():
        if SECRET_LOOK.search(value) or SECRET_NAME.search(key) or USERINFO.search(value):
            raise ConfigError(f"image {what} {key}: looks like a secret", hint="pass it to the container when it starts")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key):
            raise ConfigError(f"image {what} {key!r}: expected letters, digits, '_', '.' and '-'")
        try:
            render.env_value(value)
        except ValueError as exc:
            raise ConfigError(f"image {what} {key}: {exc}; found {value!r}") from exc
