"""builder.yaml as frozen pydantic models. A field's description is its documentation, in the schema and the docs too.

Unknown keys are refused and types are strict, so YAML 1.1's traps (`3.10` a float, `no` a boolean, `12:30` the number
750) are errors instead of wrong values. pydantic: the field's standard for this, with JSON Schema and error locations.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from builder import units
from builder.format import secret

MIN_CHUNK, MAX_CHUNK = 8 << 20, 64 << 20


def _size(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a size with a unit, such as 16MiB")
    return units.parse_size(value)


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a duration with a unit, such as 60s")
    return units.parse_seconds(value)


def _whole(value: object) -> object:
    """Literal[1] compares by value, and takes true and 1.0 for 1."""
    if type(value) is not int:
        raise ValueError("expected 1")
    return value


def _chunk(value: int) -> int:
    if not MIN_CHUNK <= value <= MAX_CHUNK:
        raise ValueError("expected auto, or 8MiB to 64MiB")
    return value


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("names one twice")
    return value


_SIZE_SCHEMA: dict[str, Any] = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(B|[kMGT]B|[KMGT]iB)$"}
_TIME_SCHEMA: dict[str, Any] = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|min|h)$"}
Size = Annotated[int, BeforeValidator(_size), Field(json_schema_extra=lambda s: _become(s, _SIZE_SCHEMA))]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(json_schema_extra=lambda s: _become(s, _TIME_SCHEMA))]
ChunkSize = Annotated[
    int, BeforeValidator(_size), AfterValidator(_chunk), Field(json_schema_extra=lambda s: _become(s, _SIZE_SCHEMA))
]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)*([-+.a-z0-9]*)$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
StubName = Literal["cufft", "cufile", "curand", "cusolver", "cusparse", "cusparselt", "nccl", "nvjitlink", "nvshmem"]
"""The names of builder/slim/stubs.py, which says what each stands for; a test compares the two."""


def _become(schema: dict[str, Any], other: dict[str, Any]) -> None:
    keep = {k: schema[k] for k in ("description", "title") if k in schema}
    schema.clear()
    schema.update(keep | other)


class Section(BaseModel):
    """The rules of every part: unknown keys refused, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TokenRef(Section):
    """Where a secret is found; the secret itself never stands in this file."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the environment variable that holds it."""


class Model(Section):
    """Where the weights come from."""

    source: str
    """A folder, a .gguf file, or hf://organisation/model. A relative path counts from this file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; builder.lock holds the commit it meant."""
    include: tuple[str, ...] = ("*",)
    """Glob patterns of the files to take."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of the files to leave out; wins over include."""
    token: TokenRef | None = None
    """The hub token, by reference. A literal token is refused."""


class Weights(Section):
    """Where the chunks are stored."""

    store: str
    """A folder, or s3://bucket/prefix. A relative path counts from this file."""
    endpoint_url: str | None = None
    """An S3-compatible server other than AWS (R2, Ceph, rclone). Checksum mode follows it."""
    region: str | None = None
    """The bucket's region, where the usual AWS configuration does not say."""
    chunk_size: ChunkSize | Literal["auto"] = "auto"
    """Target size of a chunk, 8MiB to 64MiB; auto is 16MiB."""
    publish: tuple[Literal["chunks", "plain"], ...] = ("chunks",)
    """chunks; and plain: the original files beside them, for stock tools."""
    require_signature: tuple[str, ...] = ()
    """Public keys (PEM files, or KMS URIs that cosign takes) of which one must have signed what pull and verify read."""

    @property
    def chunk_bytes(self) -> int:
        return 16 << 20 if isinstance(self.chunk_size, str) else self.chunk_size


class InferenceEngine(Section):
    """The program that serves the model."""

    name: Literal["llama.cpp", "transformers", "vllm", "sglang", "tensorrt-llm", "onnxruntime", "triton"]
    """Which one."""
    version: Version
    """The version of its wheel, pinned."""


def _public_url(value: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[^\s@]*)?", value):
        raise ValueError("expected an address such as https://host:8443/path, without user and password")
    return value


def _tls(value: str) -> str:
    if not value.startswith("https://"):
        raise ValueError("expected https://: what is installed from it decides what the image does")
    return value


_URL_SCHEMA: dict[str, Any] = {"type": "string", "pattern": r"^https://[^@\s]+$"}
IndexUrl = Annotated[
    str, AfterValidator(_public_url), AfterValidator(_tls), Field(json_schema_extra=lambda s: _become(s, _URL_SCHEMA))
]
ProxyUrl = Annotated[str, AfterValidator(_public_url)]


class Index(Section):
    """One package index of your own, instead of the one that this machine's pip is set to."""

    url: IndexUrl
    """Its simple API (PEP 503), such as https://packages.example.com/simple. No user and no password in it."""
    extra: tuple[IndexUrl, ...] = ()
    """Further indexes. pip takes the best version of all of them, so a name that is free on one can be taken there."""
    username: str | TokenRef | None = None
    """User name at the host of `url`, or the variable that holds it."""
    password: Annotated[TokenRef | None, Field(validate_default=True)] = None
    """The variable that holds the password or token. It reaches the build as a secret, and no layer."""

    @field_validator("password")
    @classmethod
    def _both(cls, value: TokenRef | None, info: ValidationInfo) -> TokenRef | None:
        if "username" in info.data and (value is None) != (info.data["username"] is None):
            raise ValueError("expected both username and password, or neither")
        return value


class Apt(Section):
    """Where Debian packages come from."""

    sources: str
    """A file of sources, deb822 or one-line, as in /etc/apt. It stays out of the image."""
    auth: str | None = None
    """A file of logins, as apt_auth.conf(5) describes it. It stays out of the image."""


class Proxy(Section):
    """Proxies of the build steps."""

    http: ProxyUrl | None = None
    """For http:// addresses. One with a password comes from the environment: leave out image.proxy, and set http_proxy."""
    https: ProxyUrl | None = None
    """For https:// addresses."""
    no_proxy: Annotated[str, Field(pattern=r"^[^\s@]*$")] | None = None
    """Hosts that are reached directly: names, domains and addresses, with commas between."""


def _others(labels: dict[str, str]) -> dict[str, str]:
    if own := sorted(name for name in labels if name.startswith("builder.")):
        raise ValueError(f"found {own[0]}; labels of builder. are written by the build alone")
    return labels


class Image(Section):
    """The serving image."""

    repository: Annotated[str, Field(pattern=r"^[a-z0-9]+([._:/-][a-z0-9]+)*$")]
    """Registry and name, without tag."""
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] = "latest"
    """Tag of the built image. A cluster should use the digest."""
    engine: InferenceEngine
    """The inference engine."""
    python: Annotated[str, Field(pattern=r"^3\.\d+$")] = "3.11"
    """Python of the image, in quotes: "3.12"."""
    platforms: Annotated[tuple[Literal["linux/amd64", "linux/arm64"], ...], AfterValidator(_once)] = ()
    """Platforms of the image, in one index where there are several; [] is that of the machine that builds."""
    cuda: Annotated[str, Field(pattern=r"^(none|\d+(\.\d+)?)$")] = "none"
    """CUDA version of the wheels, in quotes: "13"; "none" makes a CPU image."""
    gpu_archs: Annotated[tuple[Annotated[str, Field(pattern=r"^[1-9]\d?\.\d$")], ...], AfterValidator(_once)] = ()
    """Compute capabilities that will run the image, in quotes: ["9.0"]. GPU code that none can use goes; [] keeps all of it."""
    prune: Literal["none", "oss", "all"] = "oss"
    """Where it goes from. oss: files whose licence allows changes; all: NVIDIA's too, not for redistribution; none: nowhere."""
    packages: tuple[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z0-9,._-]+\])?={2,3}[0-9][A-Za-z0-9.+!]*$")], ...
    ] = ()
    """Further wheels to install, pinned: ["lmcache==0.4.2"]."""
    without: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ...], AfterValidator(_once)] = ()
    """Wheels to leave out, and what only they bring along: ["tilelang"]. The engine's imports must work without them."""
    stubs: Annotated[tuple[StubName, ...], AfterValidator(_once)] = ()
    """Libraries that are linked but not used, replaced by stubs that name themselves when called: ["curand", "cufft"]."""
    jit: bool | None = None
    """Whether the image carries the compiler and headers to compile kernels with at run time; null: as the engine needs."""
    final: Literal["slim", "distroless", "dev"] = "slim"
    """slim; distroless: without shell and package manager; dev: with debuggers, an editor and pip, not for clusters."""
    base: str = "debian:bookworm-slim"
    """Base image; the first build pins its digest in builder.lock."""
    wheelhouse: str | None = None
    """A folder of wheels to install from before any index is asked; for closed networks."""
    index: bool | Index = True
    """The package index. true: the one this machine's pip is set to. false: none, the wheelhouse must hold everything."""
    apt: Apt | None = None
    """Where Debian packages come from; without it, this machine's own sources where they are for the same release."""
    proxy: Proxy | None = None
    """Proxies of the build steps; without it, those of the environment."""
    ca_bundle: str | None = None
    """A PEM file of certificate authorities that the build trusts. It stays out of the image."""
    build_network: Literal["default", "host", "none"] = "default"
    """Network of the build steps."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Environment of the server."""
    compile_cache: str | None = None
    """A folder that `builder cache capture --to` wrote: what the engine compiled, as the image's last layer."""
    labels: Annotated[dict[str, str], AfterValidator(_others)] = {}
    """Further OCI labels; those of builder. are its own."""


class Warmup(Section):
    """Requests made before the server counts as ready: every batch size with every length."""

    batch: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)] = (1,)
    """Requests at the same time."""
    tokens: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (32,)
    """Length of the prompt, in tokens, about."""


class Serve(Section):
    """How the image serves."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the OpenAI-compatible API."""
    control_port: Annotated[int, Field(ge=1, le=65535)] = 8001
    """Port of /live, /ready and /metrics."""
    args: tuple[str, ...] = ()
    """Further arguments of the engine."""
    warmup: Warmup = Warmup()
    """Warm-up before ready."""
    queue: bool = True
    """Hold early requests until the engine is ready, instead of refusing them."""
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Requests held at most; further ones get 503 with Retry-After."""


class Volume(Section):
    """The node's data volume."""

    size: Size = 120 << 30
    """Size of the volume; the file system is made at this size."""
    type: Literal["gp3", "gp2", "io2"] = "gp3"
    """EBS volume type."""
    iops: Annotated[int, Field(ge=100, le=256_000)] = 6000
    """Provisioned operations per second."""
    throughput: Annotated[int, Field(ge=125, le=2000)] = 600
    """Provisioned MiB/s."""


class Hydrate(Section):
    """How the blocks of a new volume get there from the snapshot. EBS otherwise loads each on first touch."""

    mode: Literal["none", "rate", "fsr"] = "rate"
    """none; rate: EBS provisioned initialisation rate; fsr: Fast Snapshot Restore."""
    mib_per_s: Annotated[int, Field(ge=100, le=300)] = 300
    """Initialisation rate, 100 to 300 MiB/s."""


class Bake(Section):
    """The pre-seeded node volume."""

    target: Literal["bottlerocket", "al2023-volume", "gke-secondary", "azure-data", "raw"] = "bottlerocket"
    """What kind of node reads it: what the disk's table, file system and labels are like."""
    platform: Literal["linux/amd64", "linux/arm64"] | None = None
    """Platform of the images on it; null: that of the machine that bakes. Another one is unpacked, and cannot be started."""
    containerd: str | None = None
    """The containerd to bake with, 1.6 to 2.x: its path, or the folder it lies in with ctr; null: the machine's program."""
    region: str | None = None
    """Cloud region of the snapshot."""
    contents: Annotated[tuple[Literal["image", "weights", "compile-cache"], ...], Field(min_length=1)] = ("image",)
    """What to put on it. Weights only where they are small (below about 10 GB). compile-cache: image.compile_cache, or what was
    captured last for this name below weights.store."""
    volume: Volume = Volume()
    """Size and speed."""
    hydrate: Hydrate = Hydrate()
    """Initialisation from the snapshot."""
    os_version: Annotated[str, Field(pattern=r"^v(\d+\.\d+\.\d+|\d{8})$")] = "v1.62.0"
    """Release to pin in the EC2NodeClass: v1.62.0 for Bottlerocket, v20260714 for AL2023."""


class Load(Section):
    """The load test."""

    concurrency: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)] = (1, 4, 8)
    """Requests in flight, one level after another."""
    requests: Annotated[int, Field(ge=1)] = 64
    """Requests per level."""
    max_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens to generate per request."""


class Budget(Section):
    """Upper limits; a figure above one exits with code 6."""

    cold_start_p95: Seconds | None = None
    """Container asked for, until ready; 95th percentile of the runs."""
    first_token_p95: Seconds | None = None
    """Time to first token under the lowest load level; 95th percentile."""
    image_size: Size | None = None
    """Compressed bytes of all layers."""


class Expect(Section):
    """One question whose answer proves that the model is the model."""

    prompt: str = "What is the capital of France?"
    """Asked with temperature 0."""
    contains: str | None = None
    """Text that the answer must contain, case ignored. null: only that two answers are the same, and not empty."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """sha256 of the whole answer, as a report shows it, where every machine must answer alike."""


class Verify(Section):
    """The proof."""

    gpu: Literal["auto", "required", "none"] = "auto"
    """auto uses one where there is one; required fails without; none never asks."""
    runs: Annotated[int, Field(ge=1, le=100)] = 1
    """Cold starts to measure."""
    expect: Expect = Expect()
    """The question."""
    load: Load = Load()
    """The load."""
    budget: Budget = Budget()
    """The limits."""


class Spec(Section):
    """builder.yaml, version 1."""

    version: Annotated[Literal[1], BeforeValidator(_whole)]
    """Version of this file's format."""
    name: Name
    """Name of the model server: the weights' name, and the stem of everything generated."""
    model: Model
    """Where the weights come from."""
    weights: Weights
    """Where the chunks are stored."""
    image: Image
    """The serving image."""
    serve: Serve = Serve()
    """How it serves."""
    bake: Bake = Bake()
    """The node volume."""
    verify: Verify = Verify()
    """The proof."""
    emit: tuple[Literal["deployment", "prefetch-daemonset", "kserve", "karpenter", "keda"], ...] = ()
    """Kubernetes objects of this server, for the tools that write them. This version writes what `builder bake` does."""

    @model_validator(mode="after")
    def _ports(self) -> Spec:
        if self.serve.port == self.serve.control_port:
            raise ValueError("serve.port and serve.control_port are the same")
        return self


SECRET_LOOK = secret.LOOK
