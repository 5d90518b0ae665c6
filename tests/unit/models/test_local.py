"""A folder or a file as a model: what is taken, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builder.errors import ConfigError, IntegrityError
from builder.models.resolve import resolve
from builder.models.source import ModelRef


def paths(source: Path, **patterns: tuple[str, ...]) -> list[str]:
    return [f.path for f in resolve(ModelRef(str(source), **patterns)).files]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my model"
    for path in ("config.json", "unet/model.safetensors", "vae/model.safetensors", "onnx/a.onnx",
                 ".git/HEAD", ".cache/huggingface/x", ".builder/complete"):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def test_all_files_by_path_without_the_tools_own(folder: Path) -> None:
    assert paths(folder) == ["config.json", "onnx/a.onnx", "unet/model.safetensors", "vae/model.safetensors"]


def test_the_source_is_the_bare_name(folder: Path) -> None:
    snapshot = resolve(ModelRef(str(folder)))
    assert (snapshot.source, snapshot.revision) == ("my model", "")
    assert snapshot.size == sum(f.size for f in snapshot.files)


def test_patterns(folder: Path) -> None:
    assert paths(folder, include=("*.safetensors",)) == ["unet/model.safetensors", "vae/model.safetensors"]
    assert paths(folder, include=("*.safetensors",), exclude=("vae/",)) == ["unet/model.safetensors"]
    with pytest.raises(ConfigError, match="no file to take"):
        paths(folder, include=("*.gguf",))


def test_links_inside_and_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--o--m" / "blobs", tmp_path / "models--o--m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text("weights")
    (snapshot / "model.bin").symlink_to("../../blobs/0123")
    (snapshot / "alias.bin").symlink_to("model.bin")
    assert paths(snapshot) == ["alias.bin", "model.bin"]


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "a.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"a\.bin: a link to .*secret, outside"):
        paths(folder)
    assert "a.bin" not in paths(folder, exclude=("a.bin",))


def test_a_link_to_a_folder_is_refused(folder: Path) -> None:
    (folder / "copy").symlink_to("unet")
    with pytest.raises(ConfigError, match="a link to a folder"):
        paths(folder)


def test_a_dangling_link_is_refused(folder: Path) -> None:
    (folder / "a.bin").symlink_to("nothing")
    with pytest.raises(IntegrityError, match="a link to nothing"):
        paths(folder)


def test_a_pipe_is_refused_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        paths(folder)


@pytest.mark.parametrize("name", [b"a\\b", b"caf\xe9"])
def test_an_unsafe_name_is_refused(folder: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(folder), name), "w"):  # noqa: PTH118, PTH123  # a name that is no text
        pass
    with pytest.raises(ConfigError, match="cannot be part of a model"):
        paths(folder)


def test_one_file(folder: Path) -> None:
    assert paths(folder / "onnx" / "a.onnx") == ["a.onnx"]


def test_a_split_file_brings_its_parts(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "n-00001-of-00002.gguf"):
        (tmp_path / name).touch()
    assert paths(tmp_path / "m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("source", "hint"), [("org/model", "hf://org/model"), ("/no/such/path", "check the path"), ("ftp://x/y", "hf://")]
)
def test_no_source(source: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(ModelRef(source))
    assert hint in caught.value.hint
