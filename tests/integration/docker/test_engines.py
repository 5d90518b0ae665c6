"""Other engines and other ends of the stage graph, built for real: ONNX Runtime, and the demo with nothing but what it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder import resources
from builder.config.load import load
from builder.image.built import BuiltImage
from builder.pipeline import build_image
from tests.conftest import DemoImage

pytestmark = pytest.mark.docker
Build = Callable[..., BuiltImage]


@pytest.fixture(scope="module")
def build(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    made: list[str] = []

    def one(name: str, *, change: tuple[str, str] = ("", ""), proof: bool = True) -> BuiltImage:
        folder = tmp_path_factory.mktemp("engine") / name
        shutil.copytree(resources.folder("images") / name, folder, ignore=None if proof else shutil.ignore_patterns("verify"))
        (folder / "builder.yaml").write_text((folder / "builder.yaml").read_text().replace(*change, 1))
        built = build_image(load(folder), tag=f"builder-test/{name}:{uuid.uuid4().hex[:12]}")
        made.append(built.reference)
        return built

    yield one
    for reference in made:
        subprocess.run(["docker", "rmi", "-f", reference], capture_output=True, check=False)


def run(image: BuiltImage, *command: str, network: str = "none") -> subprocess.CompletedProcess[str]:
    words = ["docker", "run", "--rm", f"--network={network}", "--entrypoint", command[0], image.reference, *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_onnx_runtime_proves_itself_and_shares_its_lower_layers(build: Build, demo_image: DemoImage) -> None:
    """Its verify script ran inside before it was named. The layers of the base and of builder's wheels are the demo's own."""
    built = build("minilm-onnxruntime-cpu")
    index = json.loads((demo_image.oci / "index.json").read_text())
    manifest = json.loads((demo_image.oci / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    demo = [layer["digest"] for layer in manifest["layers"]]
    assert built.layers[:3] == tuple(demo[:3])
    assert built.layers[3] != demo[3]
    assert all(layer["mediaType"].endswith("+zstd") for layer in manifest["layers"])


@pytest.fixture(scope="module")
def distroless(build: Build) -> BuiltImage:
    return build("demo-llama-cpp", change=("image:\n", "image:\n  final: distroless\n"), proof=False)


def test_a_distroless_image_runs_and_has_no_shell_and_no_package_manager(distroless: BuiltImage) -> None:
    done = run(distroless, "/opt/venv/bin/python", "-m", "builder.runtime", "--help")
    assert done.returncode == 0, done.stderr
    names = ("sh", "bash", "apt", "dpkg", "pip", "gcc", "perl")
    look = f"import os, shutil; print([name for name in {names} if shutil.which(name)], os.getuid())"
    assert run(distroless, "/opt/venv/bin/python", "-c", look).stdout == "[] 10001\n"
    assert run(distroless, "/bin/sh", "-c", "true").returncode == 127


def test_a_distroless_image_knows_authorities_and_writes_where_it_must(distroless: BuiltImage) -> None:
    code = (
        "import ssl, os, pathlib, xllamacpp; assert ssl.create_default_context().cert_store_stats()['x509_ca'] > 50\n"
        "for name in (os.environ['HOME'], os.environ['BUILDER_MODELS_ROOT'], '/tmp'): (pathlib.Path(name) / 'x').touch()"
    )
    done = run(distroless, "/opt/venv/bin/python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_distroless_image_has_the_bytecode_of_what_a_start_reads_and_no_other(distroless: BuiltImage) -> None:
    look = (
        "import sys, xllamacpp\n"
        "from builder.runtime import commands, control, llamacpp, serve\n"
        "from importlib.util import cache_from_source as cached\n"
        "from pathlib import Path\n"
        "origins = [getattr(getattr(m, '__spec__', None), 'origin', None) or '' for m in sys.modules.values()]\n"
        "sources = [name for name in origins if name.endswith('.py')]\n"  # 'frozen': in the interpreter itself
        "bare = [name for name in sources if Path(cached(name)).read_bytes()[4:8] != b'\\x01\\x00\\x00\\x00']\n"  # PEP 552
        "import imaplib\n"
        "print(len(sources) > 50, bare, Path(cached(imaplib.__file__)).exists())"
    )
    done = run(distroless, "/opt/venv/bin/python", "-c", look)
    assert done.stdout == "True [] False\n", done.stderr


def test_a_distroless_image_is_smaller_and_has_the_same_wheels(distroless: BuiltImage, demo_image: DemoImage) -> None:
    index = json.loads((demo_image.oci / "index.json").read_text())
    manifest = json.loads((demo_image.oci / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    layers = [(layer["digest"], layer["size"]) for layer in manifest["layers"]]
    assert distroless.size < 0.75 * sum(size for _, size in layers)
    shared = set(distroless.layers) & {digest for digest, _ in layers}
    assert {layers[2][0], layers[3][0]} <= shared  # builder's wheels and the engine, whatever lies below


def test_what_debian_left_in_a_distroless_image_is_told(distroless: BuiltImage, tmp_path: Path) -> None:
    """By dpkg's own records, for scanners: the packages, and which of their files are there."""
    code = "import json, pathlib; print(json.dumps(sorted(p.name for p in pathlib.Path('/var/lib/dpkg/status.d').iterdir())))"
    names = json.loads(run(distroless, "/opt/venv/bin/python", "-c", code).stdout)
    assert {"libc6", "libc6.md5sums", "libssl3", "python3.11-minimal", "libgomp1"} <= set(names)
    assert "apt" not in names
