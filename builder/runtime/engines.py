"""The engines this runtime can start, as command lines. An engine is any program with an HTTP server of one of two protocols.

    openai   chat completions, streamed: llama.cpp, transformers, vllm, sglang, tensorrt-llm, command
    v2       tensors in, tensors out, by the Open Inference Protocol (KServe v2): onnxruntime, triton

The runtime decides where an engine listens, which model it serves and under which name; arguments that would say otherwise
are refused before anything starts. `command` runs whatever BUILDER_ENGINE_ARGS spells, with {model} {name} {host} {port} put
in: a way to bring one's own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builder.errors import CapabilityError, ConfigError
from builder.format.manifest import Manifest

_SHARD = re.compile(r"-(\d{5})-of-\d{5}\.gguf\Z")
LISTENS = ("--host", "--port")
# A key or TLS would also keep out the warm-up and the health checks; both belong in front of the server.
CLOSED = ("--api-key", "--ssl-keyfile", "--ssl-certfile")


@dataclass(frozen=True)
class Launch:
    """What an engine needs to know. folder: the restored model; name: as clients call it; args: the user's own.

    gpu: "required", "auto" or "none".
    """

    folder: Path
    manifest: Manifest
    host: str
    port: int
    args: Sequence[str]
    gpu: str = "auto"

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def listen(self) -> list[str]:
        return ["--host", self.host, "--port", str(self.port)]


@dataclass(frozen=True)
class Command:
    """What to run. cwd: the working folder, or None for this process's own.  env: added to this process's own environment."""

    argv: list[str]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """health: path that answers 200 once requests are served, without inference.  protocol: "openai" or "v2".

    reserved: options that users may not give, `-` and `_` alike, short forms of them (--hos for --host) neither.
    """

    command: Callable[[Launch], Command]
    health: str = "/health"
    protocol: str = "openai"
    reserved: tuple[str, ...] = LISTENS


def check(name: str, args: Sequence[str]) -> Engine:
    """The engine `name`. Raises ConfigError if the user's arguments take what the runtime decides."""
    engine = ENGINES[name]
    if name == "command" and not args:
        raise ConfigError("BUILDER_ENGINE=command needs the command", hint="give it as a JSON list in BUILDER_ENGINE_ARGS")
    for arg in args:
        given = arg.partition("=")[0].replace("_", "-")
        taken = next((option for option in engine.reserved if _means(given, option.replace("_", "-"))), None)
        if taken in CLOSED:
            raise ConfigError(
                f"BUILDER_ENGINE_ARGS: {arg.partition('=')[0]}: the warm-up and the health checks could not ask such a server",
                hint="ask for keys and end TLS in front of the server: a gateway, an ingress or a service mesh",
            )
        if taken:
            raise ConfigError(
                f"BUILDER_ENGINE_ARGS: {arg.partition('=')[0]} is decided by the runtime for {name}",
                hint="remove it; BUILDER_HOST, BUILDER_PORT and BUILDER_MODEL say where and what is served",
            )
    return engine


def _means(given: str, option: str) -> bool:
    """True if argparse may take `given` for `option`: it is the option, or the beginning of it."""
    return len(given) > 3 and given.startswith("--") and option.startswith(given)


def gguf_file(manifest: Manifest) -> str:
    """The .gguf to open: the only one, or the first shard of the only set. Raises ConfigError if that is not clear."""
    files = [f.path for f in manifest.files if f.path.endswith(".gguf")]
    starts = [path for path in files if not (match := _SHARD.search(path)) or int(match[1]) == 1]
    starts = [path for path in starts if not Path(path).name.startswith("mmproj")] or starts  # vision projectors go beside
    if len(starts) == 1:
        return starts[0]
    if not starts:
        raise ConfigError(f"{manifest.name}: no .gguf file in it", hint="set BUILDER_ENGINE to an engine for its format")
    raise ConfigError(
        f"{manifest.name}: {len(starts)} GGUF models in it: {', '.join(sorted(starts))}",
        hint='choose one in BUILDER_ENGINE_ARGS: ["--model-file", "<path>"]',
    )


def onnx_file(manifest: Manifest) -> str:
    """The .onnx file to open, if there is one only. Raises ConfigError if that is not clear."""
    files = sorted(f.path for f in manifest.files if f.path.endswith(".onnx"))
    if len(files) == 1:
        return files[0]
    if not files:
        raise ConfigError(f"{manifest.name}: no .onnx file in it", hint="set BUILDER_ENGINE to an engine for its format")
    raise ConfigError(
        f"{manifest.name}: {len(files)} ONNX models in it: {', '.join(files)}",
        hint='choose one in BUILDER_ENGINE_ARGS: ["--model-file", "<path>"]',
    )


def _file(launch: Launch, find: Callable[[Manifest], str]) -> tuple[str, list[str]]:
    """The model's file, and the user's other arguments. Raises ConfigError."""
    args = list(launch.args)
    for i, arg in enumerate(args):
        option, equals, file = arg.partition("=")
        if option == "--model-file" and (equals or args[i + 1 :]):
            file = file if equals else args[i + 1]
            if file not in [f.path for f in launch.manifest.files]:
                raise ConfigError(f"--model-file {file}: not a file of {launch.name}", hint="give its path within the model")
            return file, args[:i] + args[i + (1 if equals else 2) :]
    return find(launch.manifest), args


def _llamacpp(launch: Launch) -> Command:
    file, args = _file(launch, gguf_file)
    server = [sys.executable, "-m", "builder.runtime.llamacpp", "--model", str(launch.folder / file), "--alias", launch.name]
    return Command([*server, *launch.listen, *args])


def _onnxruntime(launch: Launch) -> Command:
    """This project's own server (runtime/onnxruntime.py): the wheel has none."""
    file, args = _file(launch, onnx_file)
    server = [sys.executable, "-m", "builder.runtime.onnxruntime", "--model", str(launch.folder / file), "--name", launch.name]
    provider = {"required": "cuda", "none": "cpu"}.get(launch.gpu, "auto")
    return Command([*server, *launch.listen, "--provider", provider, *args])


def _named(launch: Launch) -> Path:
    """A new folder with one link: the served name, to the model."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="builder-"))
        (folder / launch.name).symlink_to(launch.folder)
    except OSError as exc:
        raise CapabilityError(f"no temporary folder: {exc}", hint="mount a writable /tmp, such as an emptyDir") from exc
    return folder


def _script(name: str) -> str:
    """The program that a wheel has put beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _transformers(launch: Launch) -> Command:
    """`transformers serve NAME`, in a folder where NAME is a link to the model.

    The server knows its model only by the argument it was started with and answers 400 to any other name, so the
    argument must be the name and lead to the folder. Source: transformers 5.23.0, cli/serving/utils.py, _resolve_model.
    """
    return Command([_script("transformers"), "serve", launch.name, *launch.listen, *launch.args], cwd=_named(launch))


def _vllm(launch: Launch) -> Command:
    """`vllm serve FOLDER`. The port is bound before the engine loads, and opened (listen) after it: until then connections
    are refused. /health asks whether the engine's processes live. Source: vllm 0.32.0, entrypoints/cli/serve.py (the model is
    the positional argument), entrypoints/launchers/cli_args.py, launchers/launcher.py (create_server_socket),
    entrypoints/serve/instrumentator/health.py.
    """
    server = [_script("vllm"), "serve", str(launch.folder), "--served-model-name", launch.name]
    return Command([*server, *launch.listen, *launch.args])


def _sglang(launch: Launch) -> Command:
    """`python -m sglang.launch_server`. /health and /health_generate are one function, which generates a token, and takes a
    second, unless SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION is false: then /health answers 503 while the server starts and
    200 after its own warm-up. A scheduler that hangs is killed by sglang's watchdog, and the server with it.
    Source: sglang 0.5.23, srt/entrypoints/http_server.py (health_generate), srt/environ.py, srt/arg_groups/fields/serving.py
    (host, port, served_model_name), fields/model.py (model_path, with the alias --model).
    """
    server = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(launch.folder)]
    argv = [*server, "--served-model-name", launch.name, *launch.listen, *launch.args]
    return Command(argv, env={"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"})


def _tensorrt_llm(launch: Launch) -> Command:
    """`trtllm-serve serve FOLDER`. The server calls its model by the folder's last name, so FOLDER is a link of that name.
    (An option --served_model_name came after 1.2.) The port is bound while the model loads, and opened after it.
    Source: NVIDIA/TensorRT-LLM, tensorrt_llm/commands/serve.py (launch_server, the command "serve"),
    tensorrt_llm/serve/openai_server.py (OpenAIServer: self.model = model_dir.name; /health).
    """
    return Command([_script("trtllm-serve"), "serve", str(_named(launch) / launch.name), *launch.listen, *launch.args])


def _triton(launch: Launch) -> Command:
    from builder.runtime import triton

    return triton.command(launch)


def _command(launch: Launch) -> Command:
    values = {"model": str(launch.folder), "name": launch.name, "host": launch.host, "port": str(launch.port)}
    return Command([re.sub(r"\{(model|name|host|port)\}", lambda match: values[match[1]], arg) for arg in launch.args])


_NAMED = ("--model", "--served-model-name", *LISTENS, *CLOSED)
ENGINES = {
    "llama.cpp": Engine(_llamacpp, reserved=("--model", "--alias", *LISTENS)),
    "transformers": Engine(_transformers),
    "vllm": Engine(_vllm, reserved=(*_NAMED, "--uds", "--grpc", "--headless")),
    "sglang": Engine(_sglang, reserved=(*_NAMED, "--model-path", "--grpc-mode", "--smg-grpc-mode")),
    "tensorrt-llm": Engine(_tensorrt_llm, reserved=("--served-model-name", "--grpc", *LISTENS)),
    "onnxruntime": Engine(_onnxruntime, "/v2/health/ready", "v2", ("--model", "--name", "--provider", *LISTENS)),
    "triton": Engine(
        _triton,
        "/v2/health/ready",
        "v2",
        ("--model-repository", "--model-store", "--http-address", "--http-port", "--allow-http", "--backend-directory"),
    ),
    "command": Engine(_command, reserved=()),
}
