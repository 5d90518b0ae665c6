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
from builder.image import dockerfile as under_test
from builder.image import lock as locks
from builder.image import pruning
from builder.image.lock import Lock, LockLayer, Wheel
from builder.image.locked import asks
from builder.image.recipes import TORCH, VERSIONS, recipe
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


def lock_of(spec: Spec) -> Lock:
    """A lock as a resolver might write it: two layers of one wheel, one layer in two parts."""
    wheel = Wheel("w", "1", ("0" * 64,))
    layers = (LockLayer("runtime", (wheel,)), LockLayer("torch", (wheel,), 2), LockLayer("engine", (wheel,)))
    return Lock(spec.name, spec.image.python, ("linux/amd64",), asks(spec), layers)


def dockerfile(spec: Spec, *, manifest: str = "", link: bool = True) -> str:
    return under_test.dockerfile(spec, lock_of(spec), manifest=manifest, link=link)


def shipped(name: str) -> str:
    """The Dockerfile of a shipped description, of its own lock where it has one."""
    loaded = load(resources.folder("images") / name)
    path = loaded.folder / "requirements.lock"
    lock = locks.read(path.read_text(), str(path)) if path.exists() else lock_of(loaded.spec)
    return under_test.dockerfile(loaded.spec, lock)


def env_of(text: str) -> dict[str, str]:
    """The ENV instruction of the runtime stage, read back by BuildKit's quoting rules."""
    block = re.search(r"^ENV (.*?)^WORKDIR", text, re.S | re.M)
    assert block
    pairs = re.findall(r'^\s*(\w+)="((?:[^"\\]|\\.)*)"', block[1], re.M)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_image_renders_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"{name}.Dockerfile", shipped(name))


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
    engines = {load(resources.folder("images") / name).spec.image.engine.name for name in IMAGES}
    assert engines == set(VERSIONS)
    unlocked = {name for name in IMAGES if not (resources.folder("images") / name / "requirements.lock").exists()}
    assert unlocked == {"llama3-8b-tensorrt-llm"}  # its wheels are on an index of NVIDIA's own


def test_same_description_same_bytes() -> None:
    assert dockerfile(spec()) == dockerfile(spec())


def test_final_stage_is_last_and_needs_the_smoke_report() -> None:
    text = dockerfile(spec())
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.M)
    layers = ["wheels-runtime", "wheels-torch", "wheels-engine"]
    names = ["base", "resolve", *layers, "libraries", "pyc", "shipped", "runtime", "smoke", "final"]
    assert [name for _, name in stages] == names
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


@pytest.mark.parametrize(
    ("first", "second"), [("llama3-8b-vllm", "llama3-8b-transformers"), ("demo-llama-cpp", "minilm-triton")]
)
def test_images_with_the_same_wheels_have_the_same_stages(first: str, second: str) -> None:
    """Layers are shared between images only where the instructions, and the wheels, are the same."""
    one, two = stages_of(shipped(first)), stages_of(shipped(second))
    assert one["base"] == two["base"]
    assert one["resolve"] == two["resolve"]
    assert one["wheels-runtime"] == two["wheels-runtime"]
    wheels = [locks.read((resources.folder("images") / n / "requirements.lock").read_text(), n) for n in (first, second)]
    layers = [{layer.name: layer for layer in lock.layers} for lock in wheels]
    same = {name for name in layers[0] if name in layers[1] and layers[0][name] == layers[1][name]}
    assert "runtime" in same
    if first.startswith("llama3"):  # all of torch and of its NVIDIA libraries
        assert {"torch", "triton", "nvidia", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "torch-deps"} <= same
    assert all(one[f"wheels-{name}"] == two[f"wheels-{name}"] for name in same)


def stages_of(text: str) -> dict[str, str]:
    found = re.split(r"^FROM (\S+) AS (\S+)$", text, flags=re.M)
    return {
        name: parent + re.sub(r"^#.*", "", body, flags=re.M) for parent, name, body in zip(*[iter(found[1:])] * 3, strict=True)
    }


PRUNED = 'gpu_archs: ["9.0"]'


def test_every_layer_but_the_runtime_is_pruned_and_proven_where_chips_are_named() -> None:
    stages = stages_of(dockerfile(spec(image=PRUNED)))
    assert stages["wheels-runtime"] == stages_of(dockerfile(spec()))["wheels-runtime"]
    for name in ("wheels-torch", "wheels-engine"):
        assert "source=slim,target=/run/slim" in stages[name]
        assert "from=proof,source=/out,target=/run/proof" in stages[name]
        assert "steps/prune.json" in stages[name]
    assert re.findall(r"--from=(\S+) \S+ \S+", stages["slimmed"]) == ["wheels-torch", "wheels-engine"]
    assert "--from=slimmed" in stages["runtime"]
    used = [name for name, body in stages.items() if re.search(r"from=proof\b", body)]
    assert used == ["wheels-torch", "wheels-engine"]  # and nothing of it is copied into the image


@pytest.mark.parametrize("image", ["{}", 'gpu_archs: ["9.0"]\n  prune: none'])
def test_where_nothing_is_pruned_nothing_of_it_is_there(image: str) -> None:
    text = dockerfile(spec(image=image))
    assert not re.search(
        "prune|slim/|/run/slim|slimmed|proof", text.replace('builder.prune="none"', "").replace("bookworm-slim", "")
    )


def labels_of(text: str) -> dict[str, str]:
    block = re.search(r"^LABEL (.*?)^USER", text, re.S | re.M)
    assert block
    return dict(re.findall(r'^\s*([\w.-]+)="((?:[^"\\]|\\.)*)"', block[1].replace("LABEL ", ""), re.M))


@pytest.mark.parametrize(
    ("image", "prune", "redistribution"),
    [
        ("{}", None, None),
        ('cuda: "13"', "none", None),
        ('cuda: "13"\n  gpu_archs: ["9.0"]', "oss", None),
        ('cuda: "13"\n  gpu_archs: ["9.0"]\n  prune: none', "none", None),
        ('cuda: "13"\n  gpu_archs: ["9.0"]\n  prune: all', "all", "no: modified NVIDIA libraries"),
        ('cuda: "13"\n  prune: all', "none", None),  # no chips are named, so nothing is changed
        (PRUNED, "oss", None),
    ],
)
def test_the_labels_say_what_was_changed_and_that_it_must_not_be_passed_on(
    image: str, prune: str | None, redistribution: str | None
) -> None:
    labels = labels_of(dockerfile(spec(engine="transformers", version=next(iter(TORCH)), image=image)))
    assert labels.get("builder.prune") == prune
    assert labels.get("builder.redistribution") == redistribution


def test_stubs_alone_need_no_proof_and_are_named_in_a_label() -> None:
    text = dockerfile(spec(engine="transformers", version=next(iter(TORCH)), image='cuda: "13"\n  stubs: [curand, cufft]'))
    stages = stages_of(text)
    assert "proof" not in stages
    assert "source=slim,target=/run/slim" in stages["wheels-torch"]
    assert "/run/proof" not in text
    assert "slimmed" in stages
    assert labels_of(text)["builder.stubs"] == "curand,cufft"
    assert labels_of(text)["builder.prune"] == "none"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("{}", ""),
        (PRUNED, ""),
        ('cuda: "13"\n  gpu_archs: ["9.0"]\n  prune: none', ""),
        ('cuda: "13"', "the GPU code of all chips stays"),
        ('cuda: "13"\n  gpu_archs: ["9.0"]\n  prune: all', "whose licences allow no changes"),
    ],
)
def test_a_build_says_once_what_stays_or_what_it_must_not_be_used_for(image: str, said: str) -> None:
    lines = pruning.remarks(spec(engine="transformers", version=next(iter(TORCH)), image=image).image)
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    assert all("\n" not in line for line in lines)


def test_each_part_of_a_layer_is_a_layer_of_the_image() -> None:
    libraries = stages_of(dockerfile(spec()))["libraries"]
    copied = re.findall(r"--from=(\S+) (\S+)", libraries)
    assert copied == [
        ("wheels-runtime", "/out/1/"), ("wheels-torch", "/out/1/"), ("wheels-torch", "/out/2/"), ("wheels-engine", "/out/1/"),
    ]  # fmt: skip


def test_link_is_left_out_where_the_back_end_does_not_know_it() -> None:
    assert "COPY --link " in dockerfile(spec())
    assert "--link" not in dockerfile(spec(), link=False)


def test_a_compiler_only_where_kernels_are_compiled_at_run_time() -> None:
    vllm = {"engine": "vllm", "version": "0.32.0"}
    text = dockerfile(spec(**vllm, image='cuda: "13"'))
    assert "gcc" in stages_of(text)["compiler"]
    assert env_of(text)["BUILDER_JIT"] == "on"
    without = dockerfile(spec(**vllm, image='cuda: "13"\n  jit: off'))
    assert "compiler" not in stages_of(without)
    assert "gcc" not in without
    assert "compiler" not in stages_of(dockerfile(spec()))


def test_nvcc_is_found_where_it_is_and_nowhere_else() -> None:
    vllm = {"engine": "vllm", "version": "0.32.0"}
    env = env_of(dockerfile(spec(**vllm, image='cuda: "13"\n  python: "3.12"')))
    assert env["CUDA_HOME"] == "/opt/venv/lib/python3.12/site-packages/nvidia/cu13"
    assert env["PATH"].endswith(f":{env['CUDA_HOME']}/bin")
    for image in ('cuda: "13"\n  jit: off',):
        assert "CUDA_HOME" not in env_of(dockerfile(spec(**vllm, image=image)))
    assert "CUDA_HOME" not in env_of(dockerfile(spec()))


def test_a_distroless_image_cannot_compile() -> None:
    vllm = {"engine": "vllm", "version": "0.32.0"}
    with pytest.raises(ConfigError, match="distroless has no compiler, and vllm compiles kernels"):
        dockerfile(spec(**vllm, image='cuda: "13"\n  final: distroless'))
    text = dockerfile(spec(**vllm, image='cuda: "13"\n  final: distroless\n  jit: off'))
    assert env_of(text)["BUILDER_JIT"] == "off"
    assert env_of(text)["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"


def test_a_distroless_image_starts_from_nothing() -> None:
    text = dockerfile(spec(image="final: distroless"))
    stages = stages_of(text)
    assert stages["libraries"].startswith("scratch")
    assert "COPY --link --from=root /out/ /" in stages["libraries"]
    assert "source=builder,target=/opt/builder/builder" in stages["pyc"]  # whose imports of the standard library are compiled
    assert list(stages)[-1] == "final-distroless"
    later = text[text.index(" AS libraries") :]
    assert [line for line in later.splitlines() if line.startswith("    sh ")] == []  # it has no shell


def test_a_development_image_is_the_last_stage_and_says_so() -> None:
    stages = stages_of(dockerfile(spec(image="final: dev")))
    assert list(stages)[-1] == "final-dev"
    assert "gdb" in stages["final-dev"]


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
    assert f"torch==={TORCH[version]}" in asks(cuda)
    assert f"torch=={TORCH[version]}+cpu" in asks(cpu)


def test_every_requirement_is_exact() -> None:
    for name in IMAGES:
        for pin in asks(load(resources.folder("images") / name).spec):
            assert re.fullmatch(r"[A-Za-z0-9_.,\[\]-]+={2,3}[0-9][0-9A-Za-z.+]*", pin), pin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm", "version": "0.33.0"}, "the vllm wheel is for GPUs"),
        ({"image": 'cuda: "13"'}, "is for CPUs"),
        ({"engine": "transformers", "version": "1.0"}, "has no torch pinned"),
    ],
)
def test_combination_without_a_recipe(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(spec(**changes).image)
    assert caught.value.hint


def test_closed_network_never_asks_an_index() -> None:
    text = dockerfile(spec(image="index: false"))
    assert text.count("sh /run/steps/wheels no-index ") == 3
    assert "sh /run/steps/wheels index" not in text


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
