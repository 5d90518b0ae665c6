"""The build folder: complete, deterministic, and honest about its lock and wheelhouse."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from builder import pipeline, resources
from builder.config.load import Loaded, load
from builder.config.spec import Spec
from builder.errors import ConfigError, IntegrityError
from builder.format.compiled import ALL, IN_ROOT, TAR, Fingerprint
from builder.image import context, locked
from builder.image import lock as locks
from builder.image.dockerfile import lock_digest
from builder.image.lock import Lock, LockLayer, Wheel
from builder.transfer import compiled
from tests.unit.transfer.test_compiled import cache_root

ENGINE = "xllamacpp-2026.10.11549-cp310-abi3-manylinux_2_28_x86_64.whl"


@pytest.fixture
def spec() -> Spec:
    return load(resources.folder("images") / "demo-llama-cpp").spec


@pytest.fixture
def lock(spec: Spec) -> Lock:
    return locked.read(resources.folder("images") / "demo-llama-cpp", spec)


def test_same_description_makes_the_same_folder(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    first, second = context.write(tmp_path / "a", spec, lock), context.write(tmp_path / "b", spec, lock)
    assert (first.digest, first.files) == (second.digest, second.files)
    for name in first.files:
        one, two = (tmp_path / "a" / name).stat(), (tmp_path / "b" / name).stat()
        assert (one.st_mode, one.st_mtime) == (two.st_mode, two.st_mtime)


def test_another_manifest_makes_another_folder(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    assert (
        context.write(tmp_path / "a", spec, lock).digest != context.write(tmp_path / "b", spec, lock, manifest="a" * 64).digest
    )


def test_the_umask_does_not_matter(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        context.write(tmp_path / "a", spec, lock)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "Dockerfile").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a" / "steps").stat().st_mode & 0o777 == 0o755


def test_the_shipped_set_and_no_more(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    context.write(tmp_path / "a", spec, lock)
    shipped = {path.name for path in (tmp_path / "a" / "builder").iterdir()}
    assert shipped == {"__init__.py", "errors.py", "format", "transfer", "runtime"}
    assert not list((tmp_path / "a").rglob("*.pyc"))


def test_a_folder_with_something_in_it_is_left_alone(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        context.write(tmp_path, spec, lock)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_wheels_are_linked_and_stay_the_users(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    wheel = house / ENGINE
    wheel.write_bytes(b"wheel")
    wheel.chmod(0o600)
    (house / "stranger-1-py3-none-any.whl").write_bytes(b"another image's")
    before = wheel.stat().st_mtime_ns
    made = context.write(tmp_path / "a", spec, lock, wheelhouse=house)
    assert [name for name in made.files if name.endswith(".whl")] == [f"wheelhouse/engine/{ENGINE}"]
    assert (wheel.stat().st_mode & 0o777, wheel.stat().st_mtime_ns) == (0o600, before)


def test_a_closed_build_names_the_wheel_that_is_missing(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    (house / ENGINE).write_bytes(b"wheel")
    closed = spec.model_copy(update={"image": spec.image.model_copy(update={"index": False})})
    with pytest.raises(ConfigError, match=r"house lacks awscrt==0\.38\.1, and image\.index is false"):
        context.write(tmp_path / "a", closed, lock, wheelhouse=house)


def test_a_file_that_is_no_wheel_is_named(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    (house / "torch.whl").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"torch\.whl: not a wheel's name"):
        context.write(tmp_path / "a", spec, lock, wheelhouse=house)


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_wheelhouse_without_wheels(what: str, spec: Spec, lock: Lock, tmp_path: Path) -> None:
    house = tmp_path / "house"
    if what == "empty":
        house.mkdir()
    if what == "a file":
        house.write_text("")
    with pytest.raises(ConfigError, match=r"image\.wheelhouse: .* holds no wheels"):
        context.write(tmp_path / "a", spec, lock, wheelhouse=house)


def test_each_layer_gets_its_own_requirements_and_folder(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    context.write(tmp_path / "a", spec, lock)
    for layer in lock.layers:
        text = (tmp_path / "a/requirements" / f"{layer.name}.txt").read_text()
        assert [line.split(" ")[0] for line in text.splitlines()] == [wheel.pin for wheel in layer.wheels]
        assert all(" --hash=sha256:" in line for line in text.splitlines())
        assert (tmp_path / "a/wheelhouse" / layer.name).is_dir()


def write_lock(folder: Path, lock: Lock, **changes: object) -> None:
    (folder / "requirements.lock").write_text(locks.text(dataclasses.replace(lock, **changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asks": ("xllamacpp==1.0",)}, "builder.yaml asks for xllamacpp==2026"),
        ({"python": "3.12"}, "it is for Python 3.12, builder.yaml for 3.11"),
        ({"platforms": ("linux/arm64",)}, "it is for linux/arm64, builder.yaml for linux/amd64"),
    ],
)
def test_a_lock_out_of_date_is_refused(
    changes: dict[str, object], message: str, spec: Spec, lock: Lock, tmp_path: Path
) -> None:
    write_lock(tmp_path, lock, **changes)
    with pytest.raises(ConfigError, match="out of date") as caught:
        locked.read(tmp_path, spec)
    assert message in caught.value.message
    assert caught.value.hint == "run `builder lock` again"


def pruning_spec(spec: Spec, **changes: object) -> Spec:
    return spec.model_copy(update={"image": spec.image.model_copy(update={"gpu_archs": ("9.0",), **changes})})


TOOL = LockLayer("cuobjdump", (Wheel("nvidia-cuda-cuobjdump", "13.5.37", ("0" * 64,)),))


def test_a_lock_without_the_tool_of_the_proof_is_refused_and_so_is_one_with_a_tool_too_many(
    spec: Spec, lock: Lock, tmp_path: Path
) -> None:
    write_lock(tmp_path, lock)
    with pytest.raises(ConfigError, match=r"image\.prune needs cuobjdump for its proof"):
        locked.read(tmp_path, pruning_spec(spec))
    write_lock(tmp_path, lock, tools=(TOOL,))
    assert locked.read(tmp_path, pruning_spec(spec)).tools == (TOOL,)
    for other in (spec, pruning_spec(spec, prune="none")):
        with pytest.raises(ConfigError, match="it holds the tool cuobjdump"):
            locked.read(tmp_path, other)


def test_a_lock_leaves_out_exactly_what_image_without_names(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    less = spec.model_copy(update={"image": spec.image.model_copy(update={"without": ("Z3_solver",)})})
    write_lock(tmp_path, lock)
    with pytest.raises(ConfigError, match=r"image\.without names z3-solver, which it does not leave out"):
        locked.read(tmp_path, less)
    write_lock(tmp_path, lock, without=("z3-solver==4 (image.without)", "x==1 (only for what image.without names)"))
    assert locked.read(tmp_path, less).without
    with pytest.raises(ConfigError, match=r"it leaves out z3-solver, which image\.without does not name"):
        locked.read(tmp_path, spec)


def test_a_build_that_prunes_brings_the_pruner_and_its_proof_along(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    pruned = dataclasses.replace(lock, tools=(TOOL,))
    made = context.write(tmp_path / "a", pruning_spec(spec, prune="all"), pruned)
    slim = tmp_path / "a/slim/builder"
    assert {path.name for path in slim.iterdir()} == {"__init__.py", "errors.py", "slim"}
    assert (slim / "slim/tree.py").is_file()
    settings = json.loads((tmp_path / "a/steps/prune.json").read_text())
    assert settings["gpus"] == ["9.0"]
    assert settings["profile"] == "all"
    assert (tmp_path / "a/proof/requirements.txt").read_text() == TOOL.requirements()
    assert (tmp_path / "a/proof/wheelhouse").is_dir()
    assert made.digest != context.write(tmp_path / "b", pruning_spec(spec, prune="oss"), pruned).digest


def test_a_build_that_does_not_prune_has_none_of_it(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    for number, plain in enumerate((spec, pruning_spec(spec, prune="none"))):
        made = context.write(tmp_path / str(number), plain, lock)
        assert not [name for name in made.files if name.startswith(("slim/", "proof/")) or name.endswith("prune.json")]


def test_a_closed_build_needs_the_tool_of_the_proof_too(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    for one in lock.wheels:
        (house / f"{one.name.replace('-', '_')}-{one.version}-py3-none-any.whl").write_bytes(b"wheel")
    closed = pruning_spec(spec, index=False)
    with pytest.raises(ConfigError, match=r"house lacks nvidia-cuda-cuobjdump==13\.5\.37, and image\.index is false"):
        context.write(tmp_path / "a", closed, dataclasses.replace(lock, tools=(TOOL,)), wheelhouse=house)
    tool = house / "nvidia_cuda_cuobjdump-13.5.37-py3-none-manylinux2014_x86_64.whl"
    tool.write_bytes(b"tool")
    made = context.write(tmp_path / "b", closed, dataclasses.replace(lock, tools=(TOOL,)), wheelhouse=house)
    assert f"proof/wheelhouse/{tool.name}" in made.files


def test_a_lock_that_holds_more_than_asked_is_refused(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    write_lock(tmp_path, lock, asks=(*lock.asks, "left-over==1"))
    with pytest.raises(ConfigError, match="it holds left-over==1"):
        locked.read(tmp_path, spec)


def test_without_a_lock_nothing_is_built(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"requirements\.lock: not there") as caught:
        locked.read(tmp_path, spec)
    assert caught.value.hint == "run `builder lock`"


def test_shipped_locks_fit_their_images() -> None:
    found = list(resources.folder("images").glob("*/requirements.lock"))
    assert len(found) > 5
    for path in found:
        assert locked.read(path.parent, load(path.parent).spec).wheels


def test_a_baked_compile_cache_is_the_last_layer_and_changes_nothing_before_it(spec: Spec, lock: Lock, tmp_path: Path) -> None:
    artifact = compiled.pack(cache_root(tmp_path / "root"), tmp_path / "artifact", {})
    baked = context.Baked(artifact.folder, artifact.fingerprint.key)
    plain = context.write(tmp_path / "a", spec, lock)
    first, second = (context.write(tmp_path / name, spec, lock, baked=baked) for name in ("b", "c"))
    assert first.digest == second.digest != plain.digest
    assert set(first.files) - set(plain.files) == {f"compile-cache/{name}" for name in ALL}
    assert all((tmp_path / "b/compile-cache" / n).read_bytes() == (artifact.folder / n).read_bytes() for n in ALL)
    assert (tmp_path / "b/compile-cache").stat().st_mode & 0o777 == 0o755
    text, before = ((tmp_path / name / "Dockerfile").read_text() for name in ("b", "a"))
    copied = "COPY --link compile-cache/ /opt/builder/compile-cache/\n"
    assert [line for line in text.splitlines(True) if line.startswith(("COPY", "RUN", "ADD"))][-1] == copied
    assert f'builder.cache-fingerprint="{artifact.fingerprint.key}"' in text
    assert text.startswith(before[: before.index("LABEL ")])  # not one byte before it
    other = compiled.pack(cache_root(tmp_path / "root2", {"a": b"1"}), tmp_path / "artifact2", {})
    third = context.write(tmp_path / "d", spec, lock, baked=context.Baked(other.folder, other.fingerprint.key))
    assert third.digest != first.digest


def with_cache(name: str, folder: Path) -> Loaded:
    shutil.copytree(resources.folder("images") / name, folder)
    text = (folder / "builder.yaml").read_text()
    (folder / "builder.yaml").write_text(text.replace("\nimage:\n", "\nimage:\n  compile_cache: artifact\n"))
    return load(folder / "builder.yaml")


def test_a_compile_cache_for_an_image_that_compiles_nothing_is_refused(tmp_path: Path) -> None:
    loaded = with_cache("demo-llama-cpp", tmp_path / "image")
    compiled.pack(cache_root(tmp_path / "root"), tmp_path / "image/artifact", {})
    with pytest.raises(ConfigError, match=r"llama\.cpp with cuda: none compiles nothing"):
        pipeline.render_image(loaded, "")


def test_a_compile_cache_that_is_damaged_or_missing_is_refused_before_the_build(tmp_path: Path) -> None:
    folder = tmp_path / "image"
    loaded = with_cache("transformers-cpu", folder)
    with pytest.raises(ConfigError, match="artifact: no captured compile cache"):
        pipeline.render_image(loaded, "")
    root = cache_root(tmp_path / "root")
    right = {"engine": "transformers x==1", "root": "/opt/cache", "model": "sha256:" + "a" * 64}
    right["lock"] = lock_digest(locked.read(folder, loaded.spec))
    for name in right:
        (root / IN_ROOT).write_bytes(Fingerprint({**right, name: "other"}).to_bytes())
        compiled.pack(root, folder / "artifact", {})
        with pytest.raises(ConfigError, match=f"for another image: {name}: captured with other"):
            pipeline.render_image(loaded, "a" * 64)
        shutil.rmtree(folder / "artifact")
    (root / IN_ROOT).write_bytes(Fingerprint({**right, "engine": "command"}).to_bytes())
    made = compiled.pack(root, folder / "artifact", {})
    assert made.fingerprint.key in pipeline.render_image(loaded, "")
    body = bytearray((folder / "artifact" / TAR).read_bytes())
    body[body.index(b"xxx")] ^= 1
    (folder / "artifact" / TAR).write_bytes(body)
    with pytest.raises(IntegrityError, match=r"files\.tar: vllm"):
        pipeline.render_image(loaded, "")
