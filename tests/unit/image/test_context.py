"""The build folder: complete, deterministic, and honest about its lock and wheelhouse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builder import resources
from builder.config.load import load
from builder.config.spec import Spec
from builder.errors import ConfigError
from builder.image import context
from builder.image.dockerfile import RUNTIME_PINS

HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def spec() -> Spec:
    return load(resources.folder("images") / "demo-llama-cpp").spec


def lock_for(folder: Path, *pins: str) -> Path:
    path = folder / "requirements.lock"
    path.write_text("# a comment\n" + "".join(f"{pin} \\\n    {HASH}\n" for pin in (*RUNTIME_PINS, *pins)))
    return path


def test_same_description_makes_the_same_folder(spec: Spec, tmp_path: Path) -> None:
    first, second = context.write(tmp_path / "a", spec), context.write(tmp_path / "b", spec)
    assert (first.digest, first.files) == (second.digest, second.files)
    for name in first.files:
        one, two = (tmp_path / "a" / name).stat(), (tmp_path / "b" / name).stat()
        assert (one.st_mode, one.st_mtime) == (two.st_mode, two.st_mtime)


def test_another_manifest_makes_another_folder(spec: Spec, tmp_path: Path) -> None:
    assert context.write(tmp_path / "a", spec).digest != context.write(tmp_path / "b", spec, manifest="a" * 64).digest


def test_the_umask_does_not_matter(spec: Spec, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        context.write(tmp_path / "a", spec)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "Dockerfile").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a" / "steps").stat().st_mode & 0o777 == 0o755


def test_the_shipped_set_and_no_more(spec: Spec, tmp_path: Path) -> None:
    context.write(tmp_path / "a", spec)
    shipped = {path.name for path in (tmp_path / "a" / "builder").iterdir()}
    assert shipped == {"__init__.py", "errors.py", "format", "transfer", "runtime"}
    assert not list((tmp_path / "a").rglob("*.pyc"))


def test_a_folder_with_something_in_it_is_left_alone(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        context.write(tmp_path, spec)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_wheels_are_linked_and_stay_the_users(spec: Spec, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    wheel = house / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    wheel.chmod(0o600)
    before = wheel.stat().st_mtime_ns
    made = context.write(tmp_path / "a", spec, wheelhouse=house)
    assert "wheelhouse/a-1-py3-none-any.whl" in made.files
    assert (wheel.stat().st_mode & 0o777, wheel.stat().st_mtime_ns) == (0o600, before)


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_wheelhouse_without_wheels(what: str, spec: Spec, tmp_path: Path) -> None:
    house = tmp_path / "house"
    if what == "empty":
        house.mkdir()
    if what == "a file":
        house.write_text("")
    with pytest.raises(ConfigError, match=r"image\.wheelhouse: .* holds no wheels"):
        context.write(tmp_path / "a", spec, wheelhouse=house)


def test_a_lock_is_split_between_runtime_and_engine(spec: Spec, tmp_path: Path) -> None:
    engine = f"xllamacpp=={spec.image.engine.version}"
    context.write(tmp_path / "a", spec, lock=lock_for(tmp_path, engine))
    runtime_text = (tmp_path / "a/requirements/runtime.txt").read_text()
    engine_text = (tmp_path / "a/requirements/engine.txt").read_text()
    assert runtime_text == "".join(f"{pin} {HASH}\n" for pin in RUNTIME_PINS)
    assert engine_text == f"{engine} {HASH}\n"


def test_a_lock_of_another_version_is_refused(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds xllamacpp==1\.0 where builder\.yaml asks for xllamacpp==2026"):
        context.write(tmp_path / "a", spec, lock=lock_for(tmp_path, "xllamacpp==1.0"))


def test_shipped_locks_fit_their_images(tmp_path: Path) -> None:
    for lock in resources.folder("images").glob("*/requirements.lock"):
        made = context.write(tmp_path / lock.parent.name, load(lock.parent).spec, lock=lock)
        text = (made.folder / "requirements/engine.txt").read_text()
        assert text.strip()
        assert all("--hash=sha256:" in line for line in text.splitlines())
