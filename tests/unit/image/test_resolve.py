"""Resolving an image's wheels, by the real uv from a folder of real (tiny) wheels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import process
from builder.config.load import parse
from builder.config.spec import Spec
from builder.errors import BuilderError, ConfigError, RemoteError
from builder.image import platforms, pruning, resolve
from builder.image.dockerfile import RUNTIME_PINS
from builder.image.lock import Lock
from builder.image.resolve import Places
from tests.wheels import wheel

House = Callable[..., Path]
YAML = """
version: 1
name: m
model: {source: m.gguf}
weights: {store: store}
image:
  repository: r/m
  engine: {name: %s, version: "%s"}
  python: "3.12"
  %s
"""


def spec(engine: str = "vllm", version: str = "1.0", image: str = 'cuda: "13"') -> Spec:
    return parse((YAML % (engine, version, image)).encode(), "builder.yaml")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A wheelhouse with builder's own wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for pin in RUNTIME_PINS:
        wheel(folder, *pin.split("=="))
    return folder


def locked(house: Path, asked: Spec | None = None) -> Lock:
    return resolve.resolve(asked or spec(), Places(dict(os.environ), wheelhouse=house, online=False))


def pins(lock: Lock) -> dict[str, str]:
    return {found.name: found.version for found in lock.wheels}


def test_every_wheel_with_its_hash_and_size(house: Path) -> None:
    path = wheel(house, "vllm", "1.0", requires=("Fast_API.core>=1",), pad=5000)
    wheel(house, "fast-api-core", "2.0")
    lock = locked(house)
    assert pins(lock) == {"vllm": "1.0", "fast-api-core": "2.0"} | {
        pin.split("==")[0].replace("_", "-"): pin.split("==")[1] for pin in RUNTIME_PINS
    }
    found = lock.find("vllm")
    assert found
    assert found.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest(),)
    assert found.size == path.stat().st_size
    assert [layer.name for layer in lock.layers] == ["runtime", "deps", "engine"]


def test_markers_are_judged_for_the_image_not_for_this_machine(house: Path) -> None:
    wheel(
        house,
        "vllm",
        "1.0",
        requires=('new>=1; python_version >= "3.12"', 'old>=1; python_version < "3.12"', 'win>=1; sys_platform == "win32"'),
    )
    wheel(house, "new", "1")
    wheel(house, "old", "1")
    assert {"new", "old", "win"} & set(pins(locked(house))) == {"new"}


def test_of_several_wheels_the_one_that_pip_will_take(house: Path) -> None:
    wheel(house, "vllm", "1.0", tag="py3-none-any")
    wheel(house, "vllm", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64", pad=3)
    best = wheel(house, "vllm", "1.0", tag="cp312-cp312-manylinux_2_28_x86_64", pad=4)
    wheel(house, "vllm", "1.0", tag="cp312-cp312-manylinux_2_39_x86_64", pad=5)  # newer than the glibc of bookworm
    wheel(house, "vllm", "1.0", tag="cp312-cp312-manylinux_2_28_aarch64", pad=6)
    found = locked(house).find("vllm")
    assert found
    assert found.sha256 == (hashlib.sha256(best.read_bytes()).hexdigest(),)


def torch(house: Path, *, cuda: str = "13", suffix: str = "") -> None:
    wheel(house, "vllm", "1.0", requires=("torch==2.0", "mine>=1"))
    wheel(house, "mine", "1")
    wheel(house, "torch", "2.0", requires=("nvidia-cublas>=1", "sympy"))
    wheel(house, "nvidia-cublas", f"{cuda}.1")
    wheel(house, "sympy", "1")


def test_what_torch_alone_brings_is_apart_from_the_rest(house: Path) -> None:
    torch(house)
    layers = {layer.name: [found.name for found in layer.wheels] for layer in locked(house).layers}
    assert layers["nvidia"] == ["nvidia-cublas"]
    assert layers["torch-deps"] == ["sympy", "torch"]
    assert layers["deps"] == ["mine"]


def test_a_cpu_wheel_in_the_wheelhouse_does_not_win_over_cuda(house: Path) -> None:
    torch(house)
    wheel(house, "torch", "2.0+cpu")
    assert pins(locked(house))["torch"] == "2.0"


def test_wheels_for_another_cuda_than_asked_are_refused(house: Path) -> None:
    torch(house, cuda="12")
    with pytest.raises(ConfigError, match=r'image\.cuda: found "13"; vllm 1\.0 is published for CUDA 12') as caught:
        locked(house)
    assert caught.value.hint == 'set image.cuda to "12"'


def test_never_a_second_cuda(house: Path) -> None:
    wheel(house, "vllm", "1.0", requires=("dsl-libs-cu12", "dsl-libs-cu13", "only-cu12"))
    for name in ("dsl-libs-cu12", "dsl-libs-cu13", "only-cu12"):
        wheel(house, name, "4")
    lock = locked(house)
    assert lock.without == ("dsl-libs-cu12==4 (for another CUDA)",)
    assert {"dsl-libs-cu13", "only-cu12"} <= set(pins(lock))  # without a twin for this CUDA, it is not a second one


def test_further_packages_are_resolved_too(house: Path) -> None:
    wheel(house, "vllm", "1.0")
    wheel(house, "extra", "3")
    asked = spec(image='cuda: "13"\n  packages: ["extra==3"]')
    assert pins(locked(house, asked))["extra"] == "3"
    assert "extra==3" in locked(house, asked).asks


def test_two_platforms_give_two_hashes_and_a_marker_where_only_one_needs_it(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "of", lambda image: ("linux/amd64", "linux/arm64"))
    needs = ('only-arm; platform_machine == "aarch64"',)
    both = [
        wheel(house, "vllm", "1.0", requires=needs, tag=f"cp312-cp312-manylinux_2_28_{machine}", pad=number)
        for number, machine in enumerate(("x86_64", "aarch64"))
    ]
    wheel(house, "only-arm", "1")
    lock = locked(house)
    assert {found.name: len(found.sha256) for found in lock.wheels}["vllm"] == len(both)
    found = lock.find("only-arm")
    assert found
    assert found.marker == 'platform_machine == "aarch64"'


def test_an_unknown_version_is_told_in_words(house: Path) -> None:
    wheel(house, "vllm", "2.0")
    with pytest.raises(ConfigError, match=r"cannot be resolved") as caught:
        locked(house)
    assert "vllm==1.0" in caught.value.message
    assert "image.engine.version" in caught.value.hint


def test_a_solution_that_does_not_exist_is_told_in_words(house: Path) -> None:
    wheel(house, "vllm", "1.0", requires=("a==1", "b==1"))
    wheel(house, "a", "1", requires=("b==2",))
    wheel(house, "b", "1")
    wheel(house, "b", "2")
    with pytest.raises(ConfigError, match="cannot be resolved"):
        locked(house)


def test_an_index_that_does_not_answer_is_remote_and_keeps_its_password(house: Path) -> None:
    env = {"UV_DEFAULT_INDEX": "http://user:hunter2@127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    with pytest.raises(RemoteError, match="no package index answers") as caught:
        resolve.resolve(spec(), Places(dict(os.environ) | env, wheelhouse=house))
    assert "hunter2" not in str(caught.value.to_json())


def test_the_password_is_not_on_the_resolvers_command_line(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = process.run

    def spy(command: list[str], **kwargs: object) -> object:
        seen.append(command)
        return real(command, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "run", spy)
    with pytest.raises(BuilderError):
        resolve.resolve(spec(), Places({"UV_DEFAULT_INDEX": "http://u:hunter2@127.0.0.1:9/", "UV_HTTP_RETRIES": "0"}))
    assert seen
    assert not [word for command in seen for word in command if "hunter2" in word]


def test_the_same_question_has_the_same_answer(house: Path) -> None:
    torch(house)
    assert locked(house) == locked(house)
    assert dataclasses.replace(locked(house), name="other") != locked(house)


def test_an_image_that_prunes_locks_the_tool_of_its_proof_apart_from_its_wheels(house: Path) -> None:
    wheel(house, "vllm", "1.0")
    wheel(house, *pruning.CUOBJDUMP.split("=="), tag="py3-none-manylinux_2_17_x86_64")
    lock = locked(house, spec(image='cuda: "13"\n  gpu_archs: ["9.0"]'))
    assert [(tool.name, [one.pin for one in tool.wheels]) for tool in lock.tools] == [("cuobjdump", [pruning.CUOBJDUMP])]
    assert lock.find("nvidia-cuda-cuobjdump") is None
    for image in ('cuda: "13"', 'cuda: "13"\n  gpu_archs: ["9.0"]\n  prune: none'):
        assert locked(house, spec(image=image)).tools == ()


def test_a_tool_that_the_image_installs_anyway_is_the_same_one(house: Path) -> None:
    wheel(house, "vllm", "1.0", requires=("nvidia-cuda-cuobjdump==12.9",))
    wheel(house, "nvidia-cuda-cuobjdump", "12.9")
    lock = locked(house, spec(image='cuda: "13"\n  gpu_archs: ["9.0"]'))
    assert lock.tools[0].wheels == (lock.find("nvidia-cuda-cuobjdump"),)


def test_what_is_left_out_takes_along_what_it_alone_needs(house: Path) -> None:
    wheel(house, "vllm", "1.0", requires=("Big_Thing>=1", "shared", "kept"))
    wheel(house, "big-thing", "7", requires=("only-for-big==2", "shared<2"))
    wheel(house, "only-for-big", "2")
    for version in ("1", "2"):
        wheel(house, "shared", version)
    wheel(house, "kept", "1")
    lock = locked(house, spec(image='cuda: "13"\n  without: ["big.thing"]'))
    assert lock.without == ("big-thing==7 (image.without)", "only-for-big==2 (only for what image.without names)")
    assert pins(lock)["shared"] == "1"  # nothing else moves, though 2 would do now
    assert {"kept", "vllm"} <= set(pins(lock))


@pytest.mark.parametrize(
    ("named", "message", "hint"),
    [
        ("big-thin", r"image\.without: big-thin: not among the \d+ wheels", "did you mean `big-thing`?"),
        ("nothing-like-it", "not among the", "take it out; `builder lock` lists what an image installs"),
        ("vllm", "the description itself asks for it", "take it out of image.without"),
        ("awscrt", "the description itself asks for it", "take it out of image.without"),
    ],
)
def test_only_what_the_image_would_have_can_be_left_out(house: Path, named: str, message: str, hint: str) -> None:
    wheel(house, "vllm", "1.0", requires=("big-thing",))
    wheel(house, "big-thing", "7")
    with pytest.raises(ConfigError, match=message) as caught:
        locked(house, spec(image=f'cuda: "13"\n  without: ["{named}"]'))
    assert caught.value.hint == hint
