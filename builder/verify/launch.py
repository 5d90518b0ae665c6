"""What a server is started with: its environment, apart from how it is started, and which values are secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from builder.config.spec import Serve, Spec
from builder.errors import CapabilityError
from builder.format.volume import marker_digest, model_dir

CREDENTIALS = re.compile(r"AWS_|GOOGLE_|AZURE_")  # the variables that object stores' credential chains read
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 6  # shorter values occur in ordinary text; hiding them would only garble logs
LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


@dataclass(frozen=True)
class Launch:
    """One model server, asked for.

    name: the served model's name.  manifest: "sha256:<hex>", the exact version of its weights.
    store: folder or URL; endpoint_url, region: of that store.
    engine: "llama.cpp", "transformers" ...  serve: ports, arguments, warm-up.
    env: further variables of the server (image.env).  credentials: variables for the store; never shown or reported.
    models: a folder of restored models ("<64 hex>/"), to use in place of the store; read only. None: fetch.
    """

    name: str
    manifest: str
    store: str
    engine: str
    serve: Serve = field(default_factory=Serve)
    endpoint_url: str | None = None
    region: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: str | None = None

    @property
    def store_is_folder(self) -> bool:
        return "://" not in self.store


def of(spec: Spec, *, name: str, manifest: str, store: str, environ: Mapping[str, str], models: Path | None = None) -> Launch:
    """The server that `spec` describes, with the weights `manifest`, which are served under `name`.

    store: weights.store, a folder as an absolute path.  environ: for the store's credentials.
    Raises CapabilityError when `models` holds no complete copy of `manifest`.
    """
    if models is not None and marker_digest(model_dir(models, manifest)) != manifest:
        raise CapabilityError(
            f"{models}: holds no complete model {manifest}", hint=f"builder weights pull --to {model_dir(models, manifest)}"
        )
    return Launch(
        name=name,
        manifest=manifest,
        store=store,
        engine=spec.image.engine.name,
        serve=spec.serve,
        endpoint_url=spec.weights.endpoint_url,
        region=spec.weights.region,
        env=spec.image.env,
        credentials=credentials(environ),
        models=str(models.absolute()) if models else None,
    )


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that a store's credential chain reads."""
    return {k: v for k, v in environ.items() if CREDENTIALS.match(k)}


def store_environment(launch: Launch) -> dict[str, str]:
    """Where the weights are: the only part of the environment that an image leaves open."""
    out = {"BUILDER_STORE": launch.store, "BUILDER_MODEL": launch.manifest}
    if launch.endpoint_url:
        out["BUILDER_ENDPOINT_URL"] = launch.endpoint_url
    if launch.region:
        out["BUILDER_REGION"] = launch.region
    return {**launch.credentials, **out}


def whole_environment(launch: Launch, *, port: int, control_port: int, models_root: str) -> dict[str, str]:
    """Everything, as an image would have it: for a server that runs without one."""
    serve = launch.serve
    return {
        "CUDA_MODULE_LOADING": "LAZY",
        **store_environment(launch),
        **launch.env,
        "BUILDER_MODELS_ROOT": models_root,
        "BUILDER_ENGINE": launch.engine,
        "BUILDER_ENGINE_ARGS": json.dumps(list(serve.args)),
        "BUILDER_HOST": "127.0.0.1",
        "BUILDER_PORT": str(port),
        "BUILDER_CONTROL_PORT": str(control_port),
        "BUILDER_QUEUE": "1" if serve.queue else "0",
        "BUILDER_QUEUE_LIMIT": str(serve.queue_limit),
        "BUILDER_WARMUP_BATCH": ",".join(map(str, serve.warmup.batch)),
        "BUILDER_WARMUP_TOKENS": ",".join(map(str, serve.warmup.tokens)),
    }


def is_loopback(url: str | None) -> bool:
    """Whether `url` names this machine itself, which inside a container is another one."""
    return bool(url) and urlsplit(url).hostname in LOOPBACK


def with_host(launch: Launch, host: str) -> Launch:
    """The same, with the store's endpoint (or an http store) reached under the name `host`."""

    def moved(url: str) -> str:
        parts = urlsplit(url)
        netloc = f"{host}:{parts.port}" if parts.port else host
        return urlunsplit(parts._replace(netloc=netloc))

    endpoint = moved(launch.endpoint_url) if launch.endpoint_url and is_loopback(launch.endpoint_url) else launch.endpoint_url
    store = moved(launch.store) if launch.store.startswith("http") and is_loopback(launch.store) else launch.store
    return replace(launch, endpoint_url=endpoint, store=store)


def redact(text: str, launch: Launch) -> str:
    """`text` without the values of credentials and of variables whose name says secret.

    >>> redact("key hunter22", Launch("m", "", "s", "e", env={"HF_TOKEN": "hunter22"}))
    'key ***'
    """
    values = [v for k, v in {**launch.env, **launch.credentials}.items() if SECRET.search(k) and len(v) >= SHORTEST_SECRET]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
