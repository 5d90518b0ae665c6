"""The engines this runtime can start, as command lines. An engine is any program with an OpenAI-compatible HTTP server.

`command` runs whatever BUILDER_ENGINE_ARGS spells, with {model} {name} {host} {port} put in: a way to bring one's own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import CapabilityError, ConfigError
from builder.format.manifest import Manifest

_SHARD = re.compile(r"-(\d{5})-of-\d{5}\.gguf\Z")


@dataclass(frozen=True)
class Launch:
    """What an engine needs to know. folder: the restored model; name: as clients call it; args: the user's own."""

    folder: Path
    manifest: Manifest
    host: str
    port: int
    args: Sequence[str]

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True)
class Command:
    """What to run. cwd: the working folder, or None for this process's own."""

    argv: list[str]
    cwd: Path | None = None


@dataclass(frozen=True)
class Engine:
    """health: path that answers 200 once requests are served."""

    command: Callable[[Launch], Command]
    health: str = "/health"


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


def _llamacpp(launch: Launch) -> Command:
    args = list(launch.args)
    if "--model-file" in args[:-1]:
        at = args.index("--model-file")
        file = args[at + 1]
        del args[at : at + 2]
        if file not in [f.path for f in launch.manifest.files]:
            raise ConfigError(f"--model-file {file}: not a file of {launch.name}", hint="give its path within the model")
    else:
        file = gguf_file(launch.manifest)
    server = [sys.executable, "-m", "builder.runtime.llamacpp", "--model", str(launch.folder / file), "--alias", launch.name]
    return Command([*server, "--host", launch.host, "--port", str(launch.port), *args])


def _transformers(launch: Launch) -> Command:
    """`transformers serve NAME`, in a folder where NAME is a link to the model.

    The server knows its model only by the argument it was started with and answers 400 to any other name, so the
    argument must be the name and lead to the folder. Source: transformers 5.23.0, cli/serving/utils.py, _resolve_model.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="builder-"))
        (folder / launch.name).symlink_to(launch.folder)
    except OSError as exc:
        raise CapabilityError(f"no temporary folder: {exc}", hint="mount a writable /tmp, such as an emptyDir") from exc
    program = str(Path(sys.executable).with_name("transformers"))
    argv = [program, "serve", launch.name, "--host", launch.host, "--port", str(launch.port), *launch.args]
    return Command(argv, cwd=folder)


def _command(launch: Launch) -> Command:
    values = {"model": str(launch.folder), "name": launch.name, "host": launch.host, "port": str(launch.port)}
    if not launch.args:
        raise ConfigError("BUILDER_ENGINE=command needs the command", hint="give it as a JSON list in BUILDER_ENGINE_ARGS")
    return Command([re.sub(r"\{(model|name|host|port)\}", lambda match: values[match[1]], arg) for arg in launch.args])


ENGINES = {"llama.cpp": Engine(_llamacpp), "transformers": Engine(_transformers), "command": Engine(_command)}
