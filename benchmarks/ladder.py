"""How small the libraries of torch and NVIDIA get, a rung at a time; and what pruning them costs.

The wheels are those of the vLLM image's lock, in the layers of torch and NVIDIA, unpacked without an image: 2.7 GB of
downloads and 10 GB of disk.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from backports import zstd
from packaging.utils import parse_wheel_filename

from benchmarks import measure
from benchmarks.tables import plain
from builder import resources
from builder.config.load import load
from builder.image import locked, trim
from builder.slim import stub, stubs

DESCRIPTION = "llama3-8b-vllm"
LAYERS = re.compile(r"nvidia.*|torch(-deps)?")
LIBRARIES = re.compile(r"torch|nvidia-.*")
"""The wheels that are measured; the others are there for the import."""
STUBS = (("curand",), ("cufft", "cusparselt", "nvshmem"), ("cusolver", "cusparse", "nvjitlink"), ("nccl",))
CUDNN = "nvidia/cudnn/lib/libcudnn_*.so.*"
WHY = """\
How it was measured. Each rung is applied to what the one above it left. zstd -3: one tar of all files, names sorted, times 0. \
Nothing ran on a GPU: that torch is imported and multiplies matrices on the CPU is checked at each rung (column imports). \
PTX and LTO-IR that the chip can use stay; cuFFT's LTO-IR is 112 MB, and does not compress further.
"""


class _Count:
    """A file that counts what is written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


def sections(work: Path, wheels: Path | None) -> Iterator[str]:
    """wheels: a folder that holds the wheels already; None: download them."""
    site = work / "site"
    for name, wheel in _wheels(work, wheels).items():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "site" if LIBRARIES.fullmatch(name) else work / "more")
    rows: list[tuple[str, ...]] = []

    def rung(name: str, folder: Path = site) -> None:
        unpacked, packed = _sizes(folder)
        rows.append((name, f"{unpacked / 2**20:,.0f}", f"{packed / 1e6:,.0f}", _imports(folder)))
        sys.stderr.write(f"{' | '.join(rows[-1])}\n")

    rung("all")
    _drop(site)
    rung("without what nothing links")
    _strip(site)
    rung("torch stripped")
    two = work / "two"
    shutil.copytree(site, two, symlinks=True)
    _slim(two, "8.0,9.0")
    rung("GPU code for 8.0 and 9.0", two)
    shutil.rmtree(two)
    cost = _slim(site, "9.0")
    rung("GPU code for 9.0")
    largest = (site / "torch/lib/libtorch_cuda.so").stat().st_size
    for names in STUBS:
        _stub(site, names)
        rung(f"+ stubs: {', '.join(names)}")
    for library in site.glob(CUDNN):
        if "libcudnn_graph" not in library.name:
            library.unlink()
    rung("+ cuDNN without its parts but graph")
    yield f"{WHY}\n"
    yield plain("ladder: torch and NVIDIA's libraries", ("rung", "unpacked, MiB", "zstd -3, MB", "imports"), rows)
    figures = (f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{cost.rss / 2**20:.0f}", f"{largest / 1e6:.1f}")
    head = ("seconds", "CPU seconds", "peak memory, MiB", "libtorch_cuda.so after, MB")
    yield plain("builder slim --gpu 9.0 --profile all, whole tree", head, [figures])


def _wheels(work: Path, given: Path | None) -> dict[str, Path]:
    loaded = load(resources.folder("images") / DESCRIPTION / "builder.yaml")
    lock = locked.read(loaded.folder, loaded.spec)
    wanted = [w for layer in lock.layers if LAYERS.fullmatch(layer.name) for w in layer.wheels]
    folder = given or work / "wheels"
    if not given:
        pins = work / "wheels.txt"
        pins.write_text("".join(layer.requirements() for layer in lock.layers if LAYERS.fullmatch(layer.name)))
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--dest", folder, "--requirement", pins], check=True)
    return {w.name: path for path in folder.glob("*.whl") for w in wanted if _names(path) == (w.name, w.version)}


def _names(wheel: Path) -> tuple[str, str]:
    """Name, as the index compares names, and version."""
    name, version, _, _ = parse_wheel_filename(wheel.name)
    return str(name), str(version)


def _sizes(site: Path) -> tuple[int, int]:
    """Bytes unpacked, and of one tar in zstd -3."""
    count = _Count()
    unpacked = 0
    with zstd.ZstdFile(count, "wb", level=3) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:  # type: ignore[arg-type,call-overload]
        for path in sorted(site.rglob("*")):
            info = archive.gettarinfo(path, str(path.relative_to(site)))
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            unpacked += info.size
            if info.isreg():
                with path.open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
    return unpacked, count.size


def _imports(site: Path) -> str:
    """Whether torch is imported from there and multiplies on the CPU."""
    code = "import torch; a = torch.ones(64, 64); assert (a @ a).sum() == 64 ** 3 and torch.version.cuda"
    more = [str(site), str(site.parent / "more")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {more!r}; {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "yes" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no"])[-1][:60]


def _step() -> ModuleType:
    """The build's own trim step."""
    path = resources.folder("templates") / "image/steps/trim.py"
    spec = importlib.util.spec_from_file_location("trim_step", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _drop(site: Path) -> None:
    translate: Callable[[str], str] = _step().translate
    patterns = re.compile("|".join(translate(pattern) for rule in trim.RULES for pattern in rule.patterns))
    for path in sorted(site.rglob("*")):
        if (path.is_symlink() or path.is_file()) and patterns.match(path.relative_to(site).as_posix()):
            path.unlink()


def _strip(site: Path) -> None:
    for path in sorted(site.glob("torch/**/*.so*")):
        if not path.is_symlink():
            _step().stripped(path)


def _slim(site: Path, gpus: str) -> measure.Run:
    argv = [str(Path(sys.executable).with_name("builder")), "slim", str(site), "--gpu", gpus, "--profile", "all"]
    return measure.run(measure.Command([*argv, "--format", "json", "--progress", "none"], os.environ))


def _stub(site: Path, names: tuple[str, ...]) -> None:
    for path in sorted(site.rglob("*.so*")):
        name = "" if path.is_symlink() else stubs.of_file(path.name, "", names)
        if name:
            stub.replace(path, name)
