"""The lock's text and back, and the cut into layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import ConfigError
from builder.image import layers
from builder.image.lock import Lock, LockLayer, Wheel, read, text

MB = 1_000_000
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,4})?", fullmatch=True)
HASHES = st.lists(st.from_regex(r"[0-9a-f]{64}", fullmatch=True), min_size=1, max_size=2, unique=True).map(tuple)
WHEELS = st.builds(
    Wheel,
    name=NAMES,
    version=st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}(\+cpu)?", fullmatch=True),
    sha256=HASHES,
    size=st.sampled_from([0, MB, 99 * MB, 400 * MB, 900 * MB]),
    marker=st.sampled_from(["", 'platform_machine == "x86_64"']),
)


def wheel(name: str, size: int = 0, version: str = "1") -> Wheel:
    return Wheel(name, version, ("0" * 64,), size * MB)


def lock_of(*found: LockLayer) -> Lock:
    return Lock("m", "3.11", ("linux/amd64",), ("a==1",), found)


@given(st.lists(WHEELS, max_size=12, unique_by=lambda w: w.name), st.integers(1, 99))
def test_what_is_written_is_read_back(wheels: list[Wheel], parts: int) -> None:
    found = (LockLayer("one", tuple(wheels), parts), LockLayer("7zip-bin", ()))
    tools = (LockLayer("cuobjdump", tuple(wheels[:2])),)
    lock = Lock("m", "3.12", ("linux/amd64", "linux/arm64"), ("a==1", "b[c]===2"), found, ("x==1 (for another CUDA)",), tools)
    assert read(text(lock), "f") == lock


def test_pip_reads_the_lock_as_it_is(tmp_path: Path) -> None:
    """The file is also what `pip download -r requirements.lock` takes: that is how a wheelhouse is filled."""
    path = tmp_path / "requirements.lock"
    path.write_text(text(lock_of(LockLayer("one", (wheel("absent-from-every-index", 3),)))))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-index",
        "--require-hashes",
        "-r",
        path,
        "-d",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "No matching distribution found for absent-from-every-index==1" in done.stderr  # parsed, and looked for


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torch==2.13.0", "expected NAME==VERSION --hash"),
        ("torch>=2 --hash=sha256:" + "0" * 64, "expected NAME==VERSION --hash"),
        ("torch==2 --hash=sha256:" + "0" * 63, "expected NAME==VERSION --hash"),
        ("--index-url https://u:p@host/simple", "expected NAME==VERSION --hash"),
        ("# layer: ../up", "expected NAME==VERSION --hash"),
        ("", "expected NAME==VERSION --hash"),
    ],
)
def test_a_line_that_is_none_is_named(line: str, message: str) -> None:
    body = text(lock_of(LockLayer("one", (wheel("a"),)))) + line + "\n"
    with pytest.raises(ConfigError, match=message) as caught:
        read(body, "requirements.lock")
    assert caught.value.message.startswith("requirements.lock:5: ")


def test_a_wheel_before_any_layer_is_refused() -> None:
    body = "".join(line for line in text(lock_of(LockLayer("one", (wheel("a"),)))).splitlines(True) if "layer:" not in line)
    with pytest.raises(ConfigError, match=r"f:3: expected"):
        read(body, "f")


def test_a_plain_requirements_file_is_no_lock() -> None:
    with pytest.raises(ConfigError, match="f:1: not a lock of this version"):
        read("torch==1 --hash=sha256:" + "0" * 64, "f")


def test_a_wheel_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="a is there twice"):
        read(text(lock_of(LockLayer("one", (wheel("a"),)), LockLayer("two", (wheel("a"),)))), "f")


def cut(*wheels: Wheel, torch: set[str] | None = None) -> dict[str, tuple[list[str], int]]:
    found = layers.cut(wheels, runtime={"awscrt"}, torch=torch or set(), engine={"vllm"})
    return {layer.name: ([w.name for w in layer.wheels], layer.parts) for layer in found}


TORCH = {"torch": 527, "nvidia-cublas": 423, "nvidia-curand": 60, "nvidia-nvtx": 1, "sympy": 6, "triton": 198}


def test_layers_run_from_what_changes_least_to_the_engine() -> None:
    closure = [wheel(name, size) for name, size in TORCH.items()]
    found = cut(*closure, wheel("vllm", 326), wheel("awscrt", 4), wheel("fastapi"), wheel("flashinfer", 110), torch=set(TORCH))
    assert found == {
        "runtime": (["awscrt"], 1),
        "nvidia-cublas": (["nvidia-cublas"], 2),
        "nvidia": (["nvidia-curand", "nvidia-nvtx"], 1),
        "torch-deps": (["sympy"], 1),
        "torch": (["torch"], 2),
        "triton": (["triton"], 1),
        "flashinfer": (["flashinfer"], 1),
        "deps": (["fastapi"], 1),
        "engine": (["vllm"], 1),
    }


def test_large_wheels_of_one_engine_are_layers_of_their_own() -> None:
    found = layers.cut(
        [wheel("trt", 2300), wheel("trt-libs", 2200), wheel("trt-small", 1)],
        runtime=(),
        torch=(),
        engine={"trt", "trt-libs", "trt-small"},
    )
    assert {layer.name: layer.parts for layer in found} == {"trt": 6, "trt-libs": 6, "engine": 1}
    assert read(text(lock_of(*found)), "f").layers == found


def test_an_engine_does_not_change_the_layers_of_torch() -> None:
    closure = [wheel(name, size) for name, size in TORCH.items()]
    bare = cut(*closure, torch=set(TORCH))
    full = cut(*closure, wheel("vllm", 326), wheel("nvidia-cutlass", 90), wheel("aa-first", 250), torch=set(TORCH))
    assert {name: full[name] for name in bare} == bare


@given(st.lists(WHEELS, max_size=30, unique_by=lambda w: w.name))
def test_every_wheel_is_in_exactly_one_layer(wheels: list[Wheel]) -> None:
    names = {w.name for w in wheels}
    found = layers.cut(wheels, runtime=set(list(names)[:2]), torch=set(list(names)[2:9]), engine=set(list(names)[9:10]))
    assert sorted(w.name for layer in found for w in layer.wheels) == sorted(names)
    assert len({layer.name for layer in found}) == len(found)
    again = layers.cut(
        reversed(wheels), runtime=set(list(names)[:2]), torch=set(list(names)[2:9]), engine=set(list(names)[9:10])
    )
    assert again == found


@given(st.lists(st.integers(1, 99), min_size=1, max_size=60))
def test_packed_layers_are_balanced_within_one_wheel(sizes: list[int]) -> None:
    found = layers.cut([wheel(f"w{n}", size) for n, size in enumerate(sizes)], runtime=(), torch=(), engine=())
    weights = [layer.size for layer in found]
    assert max(weights) - min(weights) <= 99 * MB
    assert max(weights) <= layers.FULL + 99 * MB
