"""Compile caches at a start: which one is used, which is refused, and what is said when the engine compiles all the same."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder import pipeline
from builder.engines.local import LocalEngine
from builder.errors import CapabilityError, IntegrityError, RemoteError
from builder.format.compiled import IN_ROOT, TAR, Fingerprint, parse_fingerprint
from builder.runtime import compiled as under_test
from builder.runtime import fingerprint, gpu
from builder.runtime.settings import Settings, read
from builder.stores.open import open_store
from tests.bounds import BOUND_S

FOUND = gpu.Found("13.0", "580.65.06", (gpu.Device(0, "NVIDIA H100 80GB HBM3", "9.0"),))
MODEL = "sha256:" + "0" * 64


def settings(tmp_path: Path, environ: dict[str, str] | None = None, **values: str) -> Settings:
    env = {"COMPILE_CACHE_ROOT": str(tmp_path / "root"), "COMPILE_CACHE_DIR": str(tmp_path / "artifact"), "ENGINE": "vllm"}
    own = {f"BUILDER_{name}": value for name, value in {**env, **values}.items()}
    return read({"HOME": "/home/app", **own, **(environ or {})}).named("m")


def here(chosen: Settings, found: gpu.Found | None = FOUND, model: str = MODEL) -> Fingerprint:
    return fingerprint.here(chosen, "m", model, found)


def compile_something(root: Path, name: str = "vllm/kernel") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"compiled")


def captured(tmp_path: Path, store: Path | None = None, **values: str) -> Settings:
    """A cold start that compiled one file, captured to `artifact`; the root is empty again."""
    first = settings(tmp_path, COMPILE_CACHE_ROOT=str(tmp_path / "first"), **values)
    # The root is part of the fingerprint: the first start says that it ran in the second one's.
    mine = here(replace(first, compile_cache_root=tmp_path / "root"))
    done = under_test.install(first, mine)
    assert done.result == "none"
    compile_something(tmp_path / "first")
    open_at = open_store(str(store)) if store else None
    pipeline.capture_compiled(
        tmp_path / "first", "", tmp_path / "artifact", private=tmp_path, store=open_at, workers=LocalEngine(1)
    )
    return settings(tmp_path, **values)


def test_a_captured_cache_is_put_in_place_and_nothing_new_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = captured(tmp_path)
    done = under_test.install(chosen, here(chosen))
    assert (done.result, done.files, done.bytes, done.reason) == ("hit", 1, 8, "")
    assert (tmp_path / "root/vllm/kernel").read_bytes() == b"compiled"
    assert parse_fingerprint((tmp_path / "root" / IN_ROOT).read_bytes(), "").key == done.key
    fresh = under_test.fresh(done)
    assert fresh
    assert fresh.files == 0
    compile_something(tmp_path / "root", "triton/k/a.so")
    fresh = under_test.fresh(done)
    assert str(fresh) == "1 new files, 0.0 MiB (triton 1)"
    assert "1 files" in capsys.readouterr().err


def test_a_start_over_its_own_root_finds_it_as_it_was(tmp_path: Path) -> None:
    chosen = captured(tmp_path)
    for _ in range(2):
        done = under_test.install(chosen, here(chosen))
        assert (done.result, done.reason) == ("hit", "")


OTHERS = [
    ("driver", {"found": replace(FOUND, release="570.1")}, {}),
    ("gpu", {"found": replace(FOUND, devices=(gpu.Device(0, "NVIDIA A100", "8.0"),))}, {}),
    ("gpu", {"found": replace(FOUND, devices=FOUND.devices * 2)}, {}),
    ("model", {"model": "sha256:" + "1" * 64}, {}),
    ("engine_args", {}, {"BUILDER_ENGINE_ARGS": '["--max-model-len", "8"]'}),
    ("lock", {}, {"BUILDER_LOCK": "sha256:1"}),
    ("cuda", {}, {"BUILDER_CUDA": "12.8"}),
    ("env.HOME", {}, {"HOME": "/root"}),
    ("env.XDG_CACHE_HOME", {}, {"XDG_CACHE_HOME": "/x"}),
    ("env.VLLM_USE_V2", {}, {"VLLM_USE_V2": "1"}),
    ("engine_args", {}, {"BUILDER_ENGINE_ARGS": '["--max-num-batched-tokens", "8192"]'}),
]


@pytest.mark.parametrize(("field", "asked", "environ"), OTHERS)
def test_a_cache_of_another_stack_is_reported_or_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, asked: dict[str, gpu.Found], environ: dict[str, str]
) -> None:
    captured(tmp_path)
    chosen = settings(tmp_path, environ)
    mine = here(chosen, **asked)  # type: ignore[arg-type]
    done = under_test.install(chosen, mine)
    assert done.result == "differs"
    assert f"{field}: captured with" in done.reason
    assert done.reason.count("captured with") == 1
    assert not (tmp_path / "root/vllm").exists()
    assert f"builder: compile-cache: {done.reason}; the engine compiles\n" in capsys.readouterr().err
    with pytest.raises(CapabilityError, match=f"BUILDER_COMPILE_CACHE=require, but .*{field}: captured with"):
        under_test.install(settings(tmp_path, environ, COMPILE_CACHE="require"), mine)


def test_a_damaged_cache_ends_the_start(tmp_path: Path) -> None:
    chosen = captured(tmp_path)
    body = bytearray((tmp_path / "artifact" / TAR).read_bytes())
    body[body.index(b"compiled")] ^= 1
    (tmp_path / "artifact" / TAR).write_bytes(body)
    with pytest.raises(IntegrityError, match="sha256"):
        under_test.install(chosen, here(chosen))


def test_off_and_an_image_without_a_root_do_nothing(tmp_path: Path) -> None:
    chosen = captured(tmp_path)
    for other in (settings(tmp_path, COMPILE_CACHE="off"), replace(chosen, compile_cache_root=None)):
        done = under_test.install(other, here(other))
        assert (done.result, under_test.fresh(done)) == ("off", None)
    assert not (tmp_path / "root").exists()


def test_required_of_an_image_without_a_root_is_refused(tmp_path: Path) -> None:
    chosen = replace(settings(tmp_path, COMPILE_CACHE="require"), compile_cache_root=None)
    with pytest.raises(CapabilityError, match="BUILDER_COMPILE_CACHE_ROOT is not set"):
        under_test.install(chosen, here(chosen))


def test_a_file_that_was_compiled_in_the_place_of_another_is_counted(tmp_path: Path) -> None:
    chosen = captured(tmp_path)
    done, kernel = under_test.install(chosen, here(chosen)), tmp_path / "root/vllm/kernel"
    other = under_test.install(chosen, here(chosen))  # a second pod changes nothing for the first
    assert other.before == done.before
    assert str(under_test.fresh(done)).startswith("0 new")
    kernel.write_bytes(b"compiled, and longer")
    assert str(under_test.fresh(done)).startswith("1 new files")
    kernel.write_bytes(b"compiled")
    os.utime(kernel, ns=(9, 9))  # ninja: the same size, another time
    assert str(under_test.fresh(done)).startswith("1 new files")


def test_starts_over_one_root_wait_for_each_other(tmp_path: Path) -> None:
    chosen = captured(tmp_path)
    (tmp_path / "root/.builder").mkdir(parents=True)
    with under_test._alone(tmp_path / "root"):
        second = threading.Thread(target=under_test.install, args=(chosen, here(chosen)))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not (tmp_path / "root" / IN_ROOT).exists()
    second.join(BOUND_S)
    assert (tmp_path / "root/vllm/kernel").exists()


def test_without_a_writable_folder_anywhere_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    chosen = settings(tmp_path, COMPILE_CACHE_ROOT=str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    done = under_test.install(chosen, here(chosen))
    assert "no temporary folder can be made: No such file" in done.reason
    assert under_test.fresh(done) is None


def test_a_root_with_a_slash_at_its_end_is_the_same(tmp_path: Path) -> None:
    found = settings(tmp_path, {"NUMBA_CACHE_DIR": "/c/numba"}, COMPILE_CACHE_ROOT="/c/")
    assert found.compile_paths == {"NUMBA_CACHE_DIR": "/c/numba"}


def test_required_and_not_there(tmp_path: Path) -> None:
    chosen = settings(tmp_path, COMPILE_CACHE="require")
    with pytest.raises(CapabilityError, match=r"no captured cache is here: .*artifact"):
        under_test.install(chosen, here(chosen))


def test_a_root_left_by_another_stack_is_reported_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = settings(tmp_path)
    under_test.install(chosen, here(chosen, replace(FOUND, release="570.1")))
    compile_something(tmp_path / "root")
    with pytest.raises(CapabilityError, match=r"root is for another stack: driver: captured with 570\.1"):
        under_test.install(replace(chosen, compile_cache="require"), here(chosen))
    with pytest.raises(CapabilityError, match="root is for another stack"):  # the container starts again
        under_test.install(replace(chosen, compile_cache="require"), here(chosen))
    assert (tmp_path / "root/vllm/kernel").exists()
    done = under_test.install(chosen, here(chosen))
    assert not done.before  # nor does the engine see it, or a capture take it
    assert not (tmp_path / "root/vllm").exists()
    again = under_test.install(chosen, here(chosen, replace(FOUND, release="570.1")))
    assert set(again.before) == {"vllm/kernel"}
    assert "root is for another stack: driver: captured with 570.1" in done.reason
    assert done.reason in capsys.readouterr().err


def test_a_root_that_cannot_be_written_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    root = str(tmp_path / "file")
    environ = {"TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor", "NUMBA_CACHE_DIR": f"{root}/numba", "OTHER": f"{root}s/x"}
    chosen = settings(tmp_path, environ, COMPILE_CACHE_ROOT=root)
    done = under_test.install(chosen, here(chosen))
    assert done.root is not None
    assert done.env == {"TORCHINDUCTOR_CACHE_DIR": f"{done.root}/inductor", "NUMBA_CACHE_DIR": f"{done.root}/numba"}
    assert f"cannot be written: {root}: File exists; the engine compiles to {done.root}" in capsys.readouterr().err
    compile_something(done.root)
    fresh = under_test.fresh(done)
    assert fresh
    assert fresh.files == 1
    done.root.joinpath("vllm/kernel").unlink()
    with pytest.raises(CapabilityError, match="require, but the cache root cannot be written"):
        under_test.install(replace(chosen, compile_cache="require"), here(chosen))


def test_the_store_is_asked_by_name_and_key(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    captured(tmp_path, store)
    chosen = settings(tmp_path, COMPILE_CACHE_DIR="/nowhere", COMPILE_CACHE_STORE=str(store), COMPILE_CACHE="require")
    done = under_test.install(chosen, here(chosen))
    assert (done.result, done.origin) == ("hit", f"{store} m@{done.key[:16]}")
    assert (tmp_path / "root/vllm/kernel").read_bytes() == b"compiled"
    assert not (tmp_path / "root" / under_test.FETCHED).exists()


def test_a_store_with_another_stacks_cache_says_what_differs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    captured(tmp_path, store)
    chosen = settings(tmp_path, COMPILE_CACHE_DIR="/nowhere", COMPILE_CACHE_STORE=str(store))
    done = under_test.install(chosen, here(chosen, replace(FOUND, release="590.1")))
    assert done.reason.endswith("driver: captured with 580.65.06 (CUDA 13.0), here 590.1 (CUDA 13.0)")
    empty = tmp_path / "empty"
    empty.mkdir()
    other = settings(
        tmp_path, COMPILE_CACHE_DIR="/nowhere", COMPILE_CACHE_STORE=str(empty), COMPILE_CACHE_ROOT=str(tmp_path / "r2")
    )
    assert under_test.install(other, here(other)).result == "none"


def test_a_root_that_outlives_its_container_is_kept(tmp_path: Path) -> None:
    chosen = settings(tmp_path, COMPILE_CACHE="require")
    cold = replace(chosen, compile_cache="use")
    assert under_test.install(cold, here(chosen)).result == "none"
    with pytest.raises(CapabilityError, match="no captured cache"):  # nothing was compiled yet
        under_test.install(chosen, here(chosen))
    compile_something(tmp_path / "root")
    done = under_test.install(chosen, here(chosen))
    assert (done.result, set(done.before)) == ("kept", {"vllm/kernel"})


def test_a_silent_store_is_slow_and_works_unless_required(tmp_path: Path) -> None:
    chosen = settings(tmp_path, COMPILE_CACHE_DIR="/nowhere", COMPILE_CACHE_STORE=str(tmp_path / "gone"))
    done = under_test.install(chosen, here(chosen))
    assert "no such folder" in done.reason
    with pytest.raises(RemoteError, match="no such folder"):
        under_test.install(replace(chosen, compile_cache="require"), here(chosen))
