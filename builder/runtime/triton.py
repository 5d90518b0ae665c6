"""NVIDIA Triton: `tritonserver` over a model repository; either the server in the wheel nvidia-pytriton, or one on the PATH.

The wheel holds a whole tritonserver (2.51.0 in 0.7.0) with one backend, Python: models with `backend: "python"` and a
<version>/model.py. It needs no GPU and no driver. Its stub, which runs model.py, is linked against libpython3.<minor>.so.1.0
(Debian: package libpython3.11) and finds packages by the first `python3` on the PATH; numpy must be older than 2, as the
wheel says: with numpy 2 every answer is "output tensor shape does not match size of output". /dev/shm carries the tensors.

A model's folder is either a model repository with a folder of the served name in it, or one model (config.pbtxt, <version>/).
Source: nvidia-pytriton 0.7.0, pytriton/triton.py (_prepare_triton_inference_server), utils/distribution.py,
server/triton_server.py; tritonserver --help; Triton user guide, Model Repository.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from builder.errors import CapabilityError, ConfigError
from builder.runtime.engines import Command, Launch

_NAME = re.compile(r'^\s*name\s*:\s*"([^"]*)"', re.MULTILINE)
# On, their ports would be 8001, which is the control port's default, and 8002. Options that turn them on win.
_SERVICES = {"--allow-grpc": ("--allow-grpc", "--grpc"), "--allow-metrics": ("--allow-metrics", "--metrics")}


def command(launch: Launch) -> Command:
    """Raises ConfigError if the model is no repository for its name, CapabilityError without a writable /tmp."""
    work = _folder()
    server, more = _server(work)
    off = [f"{option}=false" for option, asked in _SERVICES.items() if not any(a.startswith(asked) for a in launch.args)]
    argv = [server, "--model-repository", str(_repository(launch, work)), *more]
    argv += ["--http-address", launch.host, "--http-port", str(launch.port), *off, *launch.args]
    return Command(argv, env={"PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])})


def _repository(launch: Launch, work: Path) -> Path:
    """A folder of links to the models, one of which has the served name. The restored folder itself holds more than models
    (.builder/), and Triton takes every folder for one.
    """
    paths = [Path(f.path) for f in launch.manifest.files]
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    alone = Path("config.pbtxt") in paths or any(top.isdigit() for top in tops)
    if not alone and launch.name not in tops:
        raise ConfigError(
            f"{launch.name}: not a model repository for this name: expected config.pbtxt, <version>/ or {launch.name}/ in it, "
            f"found {', '.join(sorted(tops)) or 'no folder'}",
            hint="push the model's own folder, or a repository under the name of the model that clients ask for",
        )
    if alone:
        _require_no_other_name(launch)
    repository = work / "models"
    repository.mkdir()
    folders = {launch.name: launch.folder} if alone else {top: launch.folder / top for top in tops}
    for name, folder in folders.items():
        (repository / name).symlink_to(folder)
    return repository


def _require_no_other_name(launch: Launch) -> None:
    config = launch.folder / "config.pbtxt"
    said = _NAME.search(config.read_text(errors="replace")) if config.is_file() else None
    if said and said[1] != launch.name:
        raise ConfigError(
            f"{launch.name}: its config.pbtxt says name: {said[1]!r}, and Triton takes a model under its folder's name only",
            hint="remove the name from config.pbtxt, or push the model under that name",
        )


def _server(work: Path) -> tuple[str, list[str]]:
    """The program, and where its backends are. The wheel's own is preferred; it keeps a stub for each Python, apart."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return shutil.which("tritonserver") or "tritonserver", []
    wheel = Path(spec.submodule_search_locations[0]) / "tritonserver"
    stub = wheel / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"
    if not stub.is_file():
        raise CapabilityError(
            f"nvidia-pytriton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}: {stub} is missing",
            hint="choose another image.python",
        )
    # Laid out as the wheel is, for the stub looks for libraries in ../../../../nvidia_pytriton.libs. The stub is a copy: Triton
    # changes its mode before it runs it, which only the owner of a file may do.
    backend = work / "pytriton" / "tritonserver" / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (wheel / "backends" / "python").iterdir():
        (backend / file.name).symlink_to(file)
    shutil.copy(stub, backend)
    (work / "nvidia_pytriton.libs").symlink_to(wheel.parents[1] / "nvidia_pytriton.libs")
    return str(wheel / "bin" / "tritonserver"), ["--backend-directory", str(backend.parent)]


def _folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="builder-"))
    except OSError as exc:
        raise CapabilityError(f"no temporary folder: {exc}", hint="mount a writable /tmp, such as an emptyDir") from exc
