"""Images: what they weigh beside a plain install, how fast they are pulled and started, and what a build costs.

`--engine NAME[:FINAL]` measures one description of images/ alone, a large one too: vLLM's takes 4 GB of downloads and 40 GB
of disk.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ladder, measure, tables
from builder import pipeline, resources, units
from builder.config.load import Loaded, load
from builder.image import inspect, locked, machine
from builder.image.built import BuiltImage
from builder.image.report import ImageReport

SMALL = ("demo-llama-cpp", "demo-llama-cpp:distroless", "minilm-onnxruntime-cpu", "transformers-cpu")
PARTS = ("size", "start", "pyc", "rebuild")
MORE = ("ladder",)
PLAIN = """\
FROM debian:bookworm-slim
RUN --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=bind,source=apt,target=/run/apt \\
    sh /run/apt ca-certificates libgomp1 libnuma1 python3 python3-venv
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=bind,source=lock.txt,target=/run/lock.txt \\
    --mount=type=bind,source=wheels,target=/run/wheels \\
    python3 -m venv /opt/venv && PIP_CERT=/run/secrets/ca PIP_CONFIG_FILE=/run/secrets/pip_conf \\
    /opt/venv/bin/pip install --no-cache-dir --no-deps --find-links /run/wheels -r /run/lock.txt
"""
"""The same wheels on the same base as a plain Dockerfile installs them, with the times that pip gives to bytecode."""
RULES = """\
How it was measured. compressed: bytes of the layers in the OCI archive, zstd -3. plain install: the same wheels of the same \
lock on the same base by `pip install` in one stage, gzip, as `docker build` makes it by default. pull: `ctr images \
pull` from a registry on this machine into a containerd with nothing in it, unpacking within it. start: `ctr run` of the \
runtime's `--help`, from the command to its end, first after the pull. Medians of the rounds, with the fastest and the slowest.
"""


@dataclass(frozen=True)
class Made:
    """One built image. name: of its description. plain: compressed bytes of the plain install, 0 if not made."""

    name: str
    loaded: Loaded
    built: BuiltImage
    report: ImageReport
    plain: int


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="builder-bench-", dir=args.dir) as work:
        body = "\n".join(_sections(Path(work), args))
    sys.stdout.write(body)
    if args.write:
        tables.replace_section(args.write, args.section, body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", help=f"NAME[:FINAL] of images/; default: {' '.join(SMALL)}")
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(PARTS),
        help=f"of {','.join(PARTS + MORE)}; default: {','.join(PARTS)}",
    )
    parser.add_argument(
        "--image", action="append", default=[], metavar="KEY=VALUE", help="a key of image: that no description has"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave the plain install out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to work; default: the temporary folder")
    parser.add_argument("--wheels", type=Path, help="ladder: a folder that holds the wheels; default: download them")
    parser.add_argument("--section", default="image", help="heading on the page; default: image")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also replace the section of this page")
    return parser.parse_args()


def _sections(work: Path, args: argparse.Namespace) -> Iterator[str]:
    yield f"{measure.machine()}\n\n`python -m benchmarks image {' '.join(sys.argv[1:])}`\n\n"
    if "ladder" in args.parts:
        yield from ladder.sections(work, args.wheels)
    if not set(PARTS) & set(args.parts):
        return
    yield RULES
    made = [_make(*name.partition(":")[::2], work, plain=not args.no_plain, more=args.image) for name in args.engine or SMALL]
    if "size" in args.parts:
        yield from _sizes(made)
    if "start" in args.parts:
        yield from _starts(work, made, args.rounds)
    if "pyc" in args.parts:
        yield from _bytecode(
            [one for one in made if one.loaded.spec.image.engine.name in ("transformers", "vllm")], args.rounds
        )
    if "rebuild" in args.parts:
        yield from _rebuilds(work, made, args.rounds)


def _make(name: str, final: str, work: Path, *, plain: bool, more: Sequence[str] = ()) -> Made:
    """A copy of the description, so that nothing is written beside the original; without its verify script.

    final: image.final, or "" for slim.  more: further keys of image:, as KEY=VALUE.
    """
    folder = work / "-".join(filter(None, (name, final)))
    shutil.copytree(resources.folder("images") / name, folder, ignore=shutil.ignore_patterns("verify", "builder.lock"))
    file = folder / "builder.yaml"
    keys = [f"  final: {final or 'slim'}", *(f"  {key}: {value}" for key, _, value in (one.partition("=") for one in more))]
    file.write_text(file.read_text().replace("image:\n", "\n".join(["image:", *keys, ""]), 1))
    loaded = load(file)
    tag = f"builder-bench/{folder.name}:latest"
    built = pipeline.build_image(loaded, tag=tag, oci=folder / "oci")
    report = inspect.report(folder / "oci", tag)
    shutil.rmtree(folder / "oci")
    label = ", ".join(filter(None, (name, final, *more)))
    return Made(label, loaded, built, report, _plain(loaded, folder) if plain and not final else 0)


def _plain(loaded: Loaded, folder: Path) -> int:
    """Compressed bytes of the plain install."""
    work = folder / "plain"
    work.mkdir()
    lock = locked.read(loaded.folder, loaded.spec)
    (work / "lock.txt").write_text("".join(layer.requirements() for layer in lock.layers))
    shutil.copy(resources.folder("templates") / "image/steps/apt", work / "apt")
    (work / "Dockerfile").write_text(PLAIN)
    (work / "wheels").mkdir()
    given = machine.gather(loaded, work)
    for wheel in given.wheelhouse.glob("*.whl") if given.wheelhouse else ():
        shutil.copy(wheel, work / "wheels")
    archive = folder / "plain.tar"
    secrets = [f"--secret=id={name},src={path}" for name, path in given.secrets.items()]
    docker = ["docker", "buildx", "build", "--quiet", "--network=host", *secrets]
    subprocess.run([*docker, f"--output=type=oci,dest={archive}", str(work)], check=True, capture_output=True)
    packed = inspect.report(archive, "plain").packed
    archive.unlink()
    return packed


def _sizes(made: Sequence[Made]) -> Iterator[str]:
    head = ("image", "compressed", "unpacked", "layers", "largest layer", "plain install", "share")
    rows = []
    for one in made:
        largest = max(layer.packed for layer in one.report.layers)
        share = f"{one.report.packed / one.plain:.2f}" if one.plain else ""
        size, unpacked = units.format_size(one.report.packed), units.format_size(one.report.size)
        rows.append((one.name, size, unpacked, str(len(one.built.layers)), units.format_size(largest),
                     units.format_size(one.plain) if one.plain else "", share))  # fmt: skip
    yield tables.plain("size", head, rows)
    for one in made if len(made) == 1 else ():
        yield tables.plain(f"left out of {one.name}", ("cause", "unpacked", "files"), _causes(one))


def _causes(one: Made) -> list[tuple[str, str, str]]:
    sums: dict[str, tuple[int, int]] = {}
    for row in one.report.dropped:
        size, files = sums.get(row.cause, (0, 0))
        sums[row.cause] = (size + row.size, files + row.files)
    largest = sorted(sums.items(), key=lambda item: -item[1][0])
    return [(cause, units.format_size(size), str(files)) for cause, (size, files) in largest]


def _starts(work: Path, made: Sequence[Made], rounds: int) -> Iterator[str]:
    from tests.servers import registry

    rows = []
    with registry.serve(work / "registry") as there:
        for one in made:
            name = there.reference(f"bench/{one.name.split(',')[0]}")
            _docker("tag", one.built.reference, name)
            _docker("push", "--quiet", name)
            _docker("image", "rm", name)
            found = [_pull_and_start(work / "node", name) for _ in range(rounds + 1)][1:]
            pulls, starts = [pull for pull, _ in found], [start for _, start in found]
            rows.append((one.name, units.format_size(one.report.packed), _spread(pulls), _spread(starts)))
    yield tables.plain("pull and first start, on this machine", ("image", "compressed", "pull", "start"), rows)


def _pull_and_start(folder: Path, name: str) -> tuple[float, float]:
    """Seconds of both, in a containerd of their own that is gone afterwards."""
    folder.mkdir()
    address = f"{folder}/sock"
    command = ["containerd", f"--root={folder}/root", f"--state={folder}/state", f"--address={address}", "--log-level=error"]
    ctr = ["ctr", f"--address={address}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            while subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode:
                time.sleep(0.1)
            pull = _seconds(
                lambda: subprocess.run([*ctr, "images", "pull", "--plain-http", name], check=True, capture_output=True)
            )
            words = [*ctr, "run", "--rm", name, "bench", "/opt/venv/bin/python", "-m", "builder.runtime", "--help"]
            start = _seconds(lambda: subprocess.run(words, check=True, capture_output=True))
            subprocess.run([*ctr, "images", "rm", "--sync", name], check=True, capture_output=True)
        finally:
            daemon.terminate()
    shutil.rmtree(folder, ignore_errors=True)
    return pull, start


def _bytecode(made: Sequence[Made], rounds: int) -> Iterator[str]:
    """`import torch` from the image with its bytecode, and with none, the page cache dropped before each."""
    rows = []
    for one in made:
        found: dict[str, list[float]] = {"with": [], "without": []}
        for number in range(rounds + 1):
            for how in found:
                hide = ["--env=PYTHONPYCACHEPREFIX=/nowhere"] if how == "without" else []
                took = _import(one.built.reference, hide)
                if number:
                    found[how].append(took)
        ratio = statistics.median(found["with"]) / statistics.median(found["without"])
        rows.append((one.name, _spread(found["with"]), _spread(found["without"]), f"{ratio:.2f}"))
    if rows:
        head = ("image", "with our bytecode", "without any", "ratio")
        yield tables.plain("import torch, cold page cache", head, rows)


def _import(image: str, options: Sequence[str]) -> float:
    """Seconds that the interpreter itself measures, from its start; the container's own start is not in it."""
    code = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    command = ["run", "--rm", "--network=none", *options, "--entrypoint=/opt/venv/bin/python", image, "-c", code]
    return float(_docker(*command))


def _rebuilds(work: Path, made: Sequence[Made], rounds: int) -> Iterator[str]:
    """The command as CI runs it: nothing changed; another argument of the server; and the text of the Dockerfile alone."""
    rows = []
    for one in made:
        file = one.loaded.path
        text = file.read_text()
        build = lambda file=file, tag=one.built.reference: _builder(work, "build", "-f", str(file), "--tag", tag)  # noqa: E731
        build()
        same = [_seconds(build) for _ in range(rounds)]
        changed = []
        for number in range(rounds):
            file.write_text(text.replace("image:\n", f"image:\n  env: {{BENCH: '{number}'}}\n", 1))
            changed.append(_seconds(build))
        file.write_text(text)
        rendered = [_seconds(lambda file=file: _builder(work, "render", "-f", str(file))) for _ in range(rounds)]  # type: ignore[misc]
        rows.append((one.name, _spread(same), _spread(changed), _spread(rendered)))
    head = ("image", "build, nothing changed", "build, app layer changed", "render")
    yield tables.plain("build again, seconds of the whole command", head, rows)


def _builder(work: Path, *words: str) -> None:
    program = Path(sys.executable).with_name("builder")
    # With its bytecode, as an installed program has it, whatever this process was told.
    settings = ["-u", "PYTHONDONTWRITEBYTECODE", f"XDG_CACHE_HOME={work}/cache"]
    subprocess.run(["env", *settings, program, *words], check=True, capture_output=True)


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
