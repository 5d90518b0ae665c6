"""The Dockerfile: byte-exact for the shipped images, linted, deterministic, and safe against hostile values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder import resources
from builder.config.load import load, parse
from builder.config.spec import Spec
from builder.errors import ConfigError
from builder.image.dockerfile import dockerfile, requirements
from builder.image.recipes import TORCH, recipe
from tests.conftest import GOLDEN, Golden

IMAGES = sorted(path.parent.name for path in resources.folder("images").glob("*/builder.yaml"))
BASIC = """
version: 1
name: m
model: {source: m.gguf}
weights: {store: %(store)s}
image:
  repository: r/m
  engine: {name: %(engine)s, version: "%(version)s"}
  %(image)s
serve: %(serve)s
"""


def spec(**changes: str) -> Spec:
    values = {"store": "store", "engine": "llama.cpp", "version": "2026.10.11549", "image": "{}", "serve": "{}"} | changes
    text = BASIC % (values | {"image": values["image"] if values["image"] != "{}" else "tag: latest"})
    return parse(text.encode(), "builder.yaml")


def env_of(text: str) -> dict[str, str]:
    """The ENV instruction of the runtime stage, read back by BuildKit's quoting rules."""
    block = re.search(r"^ENV (.*?)^WORKDIR", text, re.S | re.M)
    assert block
    pairs = re.findall(r'^\s*(\w+)="((?:[^"\\]|\\.)*)"', block[1], re.M)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_image_renders_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"{name}.Dockerfile", dockerfile(load(resources.folder("images") / name).spec))


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_image_passes_hadolint(name: str) -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    root = GOLDEN.parent.parent
    done = subprocess.run(
        [hadolint, "--config", root / ".hadolint.yaml", "--no-color", GOLDEN / f"{name}.Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_images_to_check() -> None:
    assert {"demo-llama-cpp", "transformers-cpu", "llama3-8b-transformers"} <= set(IMAGES)


def test_same_description_same_bytes() -> None:
    assert dockerfile(spec()) == dockerfile(spec())


def test_final_stage_is_last_and_needs_the_smoke_report() -> None:
    text = dockerfile(spec())
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M)
    assert [name for _, name in stages] == ["base", "wheels", "trim", "shipped", "runtime", "smoke", "final"]
    final = text[text.index(" AS final") :]
    assert "COPY --from=smoke" in final
    assert "USER 10001:0" in final
    assert "# syntax" not in text
    assert "<<" not in text


def test_nothing_but_the_base_comes_from_outside() -> None:
    text = dockerfile(spec())
    stages = {name for _, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M)}
    outside = [parent for parent in re.findall(r"^FROM (\S+)", text, re.M) if parent not in stages]
    assert outside == ["debian:bookworm-slim"]
    assert re.findall(r"^ARG", text, re.M) == []
    assert re.findall(r"^ADD", text, re.M) == []


def test_stages_before_the_engine_are_the_same_for_both_engines() -> None:
    """Layers are shared between images only where the instructions are the same."""
    first, second = dockerfile(spec()), dockerfile(spec(engine="transformers", version=next(iter(TORCH))))
    cut = "sh /steps/wheels index /requirements/engine.txt"
    assert first.partition(cut)[0].partition("\n")[2] == second.partition(cut)[0].partition("\n")[2]


@pytest.mark.parametrize("value", ['a "quoted" $HOME `x` \\ end', "$(touch /x)", "#", "ends in backslash\\", "ümlaut '"])
def test_values_arrive_literally(value: str) -> None:
    plain = spec(image="env: {A: " + json.dumps(value) + "}")
    assert env_of(dockerfile(plain))["A"] == value


@pytest.mark.parametrize("key", ["env", "labels"])
def test_line_break_cannot_add_an_instruction(key: str) -> None:
    with pytest.raises(ConfigError, match="line break"):
        dockerfile(spec(image=key + ': {A: "x\\nUSER root"}'))


def test_engine_arguments_survive_as_json() -> None:
    args = ["--flag", 'with "quotes"', "$x", "", "a b"]
    text = dockerfile(spec(serve="{args: " + json.dumps(args) + "}"))
    assert json.loads(env_of(text)["BUILDER_ENGINE_ARGS"]) == args


def test_secret_is_refused_even_when_the_spec_is_built_in_code() -> None:
    plain = spec()
    image = plain.image.model_copy(update={"env": {"HF_TOKEN": "hf_" + "a" * 34}})
    with pytest.raises(ConfigError, match="HF_TOKEN: looks like a secret"):
        dockerfile(plain.model_copy(update={"image": image}))


def test_runtime_contract() -> None:
    env = env_of(dockerfile(spec(serve="{port: 9000, queue: false, warmup: {batch: [1, 4], tokens: [8]}}")))
    assert env["BUILDER_PORT"] == "9000"
    assert env["BUILDER_CONTROL_PORT"] == "8001"
    assert env["BUILDER_QUEUE"] == "0"
    assert env["BUILDER_WARMUP_BATCH"] == "1,4"
    assert env["BUILDER_WARMUP_TOKENS"] == "8"
    assert env["BUILDER_MODEL"] == "m"
    assert env["BUILDER_ENGINE"] == "llama.cpp"
    assert env["CUDA_MODULE_LOADING"] == "LAZY"
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


@pytest.mark.parametrize("given", ["sha256:" + "a" * 64, "a" * 64])
def test_known_manifest_pins_the_model(given: str) -> None:
    text = dockerfile(spec(), manifest=given)
    assert env_of(text)["BUILDER_MODEL"] == "sha256:" + "a" * 64
    assert f'builder.manifest="sha256:{"a" * 64}"' in text


def test_store_of_this_machine_stays_out() -> None:
    assert "BUILDER_STORE" not in env_of(dockerfile(spec(store="./store")))
    assert env_of(dockerfile(spec(store="s3://b/p")))["BUILDER_STORE"] == "s3://b/p"
    loopback = dockerfile(spec(store="s3://b/p, endpoint_url: 'http://127.0.0.1:9000'"))
    assert "BUILDER_ENDPOINT_URL" not in env_of(loopback)
    remote = dockerfile(spec(store="s3://b/p, endpoint_url: 'https://s3.example.com'"))
    assert env_of(remote)["BUILDER_ENDPOINT_URL"] == "https://s3.example.com"


def test_cuda_image_demands_its_driver_and_a_cpu_image_does_not() -> None:
    version = next(iter(TORCH))
    cuda = env_of(dockerfile(spec(engine="transformers", version=version, image='cuda: "13"')))
    assert cuda["NVIDIA_REQUIRE_CUDA"] == "cuda>=13.0"
    assert "CUDA_VERSION" not in cuda  # with it, and no constraint, the container toolkit takes the image for a legacy one
    assert "NVIDIA_REQUIRE_CUDA" not in env_of(dockerfile(spec(engine="transformers", version=version)))


def test_cuda_image_does_not_take_a_cpu_wheel() -> None:
    version = next(iter(TORCH))
    cuda, cpu = (spec(engine="transformers", version=version, image=line) for line in ('cuda: "13"', "{}"))
    assert f"torch==={TORCH[version]}\n" in requirements(cuda)["engine.txt"]
    assert f"torch=={TORCH[version]}+cpu\n" in requirements(cpu)["engine.txt"]


def test_every_requirement_is_exact() -> None:
    for text in requirements(spec()).values():
        assert all(re.fullmatch(r"[A-Za-z0-9_.\[\]-]+={2,3}[0-9][0-9A-Za-z.+]*", line) for line in text.split()), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm", "version": "0.33.0"}, "vllm has no image template"),
        ({"image": 'cuda: "13"'}, "is for CPUs"),
        ({"engine": "transformers", "version": "1.0"}, "has no torch pinned"),
        ({"engine": "transformers", "version": next(iter(TORCH)), "image": 'cuda: "12"'}, "published for CUDA 13"),
    ],
)
def test_combination_without_a_recipe(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(spec(**changes).image)
    assert caught.value.hint


def test_closed_network_never_asks_an_index() -> None:
    assert "sh /steps/wheels no-index " in dockerfile(spec(image="index: false"))


def test_an_official_python_base_gets_no_second_python() -> None:
    text = dockerfile(spec(image="base: python:3.12-slim-bookworm"))
    assert "python3-venv" not in text
    assert "libpython3-stdlib" not in text
    assert "libpython3-stdlib" in dockerfile(spec())  # and a bare Debian gets all of the standard library


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "HF_TOKEN", "MY_API_KEY", "aws_access_key_id"])
def test_a_variable_named_like_a_secret_never_enters_the_image(name: str) -> None:
    spec = load(resources.folder("images") / "demo-llama-cpp" / "builder.yaml").spec
    image = spec.image.model_copy(update={"env": {name: "x"}})
    with pytest.raises(ConfigError, match=f"{name}: looks like a secret"):
        dockerfile(spec.model_copy(update={"image": image}))


def test_a_password_in_the_endpoint_never_enters_the_image() -> None:
    spec = load(resources.folder("images") / "demo-llama-cpp" / "builder.yaml").spec
    weights = spec.weights.model_copy(update={"endpoint_url": "https://user:pw@s3.example.com"})
    with pytest.raises(ConfigError, match="BUILDER_ENDPOINT_URL: looks like a secret"):
        dockerfile(spec.model_copy(update={"weights": weights}))
