"""Shards of one network: none missing, no tensor twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.errors import IntegrityError
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.weights import split
from tests.models import safetensors_model, write_safetensors

ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return safetensors_model(tmp_path / "m", shards=3)


def plan(folder: Path) -> None:
    split.plan(resolve(ModelRef(str(folder))))


def test_complete_shards_pass(folder: Path) -> None:
    plan(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / TWO).unlink()
    with pytest.raises(IntegrityError, match=f"{TWO}: missing, though {ONE} names it"):
        plan(folder)


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    write_safetensors(folder / THREE, [("model.embed_tokens.weight", [4, 4])])
    with pytest.raises(IntegrityError, match=f"{THREE}: tensor 'model.embed_tokens.weight' is here and in {ONE}") as caught:
        plan(folder)
    assert caught.value.where["tensor"] == "model.embed_tokens.weight"


def index(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_a_shard_that_only_the_index_names_must_be_there(tmp_path: Path) -> None:
    folder = safetensors_model(tmp_path / "m")
    index(folder, {"a": "model.safetensors", "b": "extra.safetensors"})
    with pytest.raises(IntegrityError, match=r"extra\.safetensors: missing, though model\.safetensors\.index\.json names it"):
        plan(folder)


def test_tensors_of_files_under_one_index_are_distinct(tmp_path: Path) -> None:
    folder = safetensors_model(tmp_path / "m")
    write_safetensors(folder / "extra.safetensors", [("lm_head.weight", [4, 4])])
    plan(folder)  # two networks in one folder may share names
    index(folder, {"a": "model.safetensors", "b": "extra.safetensors"})
    with pytest.raises(IntegrityError, match=r"lm_head\.weight"):
        plan(folder)


def test_an_index_that_is_none_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(IntegrityError, match="not an index"):
        plan(folder)
