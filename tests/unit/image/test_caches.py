"""The table of compile caches, and the variables that an image gets of it."""

from __future__ import annotations

import pytest

from builder import resources
from builder.config.load import load
from builder.image import caches
from builder.image.recipes import VERSIONS


def environment(name: str) -> dict[str, str]:
    return caches.environment(load(resources.folder("images") / name).spec.image)


def test_every_folder_lies_below_the_one_root_and_belongs_to_one_variable() -> None:
    folders = [cache.folder for cache in caches.CACHES]
    assert len(set(folders)) == len({cache.variable for cache in caches.CACHES}) == len(caches.CACHES)
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)
    assert all(set(cache.engines) <= set(VERSIONS) and cache.source for cache in caches.CACHES)


@pytest.mark.parametrize(
    ("name", "with_", "without"),
    [
        ("llama3-8b-vllm", {"VLLM_CACHE_ROOT", "CUDA_CACHE_PATH", "FLASHINFER_WORKSPACE_BASE"}, {"SGLANG_CACHE_DIR"}),
        ("qwen3-8b-sglang", {"SGLANG_CACHE_DIR", "SGLANG_JIT_CACHE_DIR", "TILELANG_CACHE_DIR"}, {"VLLM_CACHE_ROOT"}),
        (
            "transformers-cpu",
            {"TORCHINDUCTOR_CACHE_DIR", "BUILDER_COMPILE_CACHE_ROOT"},
            {"CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"},
        ),
        ("minilm-onnxruntime", {"CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"}, {"TORCHINDUCTOR_CACHE_DIR"}),
    ],
)
def test_an_engine_gets_the_variables_that_its_packages_read(name: str, with_: set[str], without: set[str]) -> None:
    found = environment(name)
    assert with_ <= set(found)
    assert not without & set(found)
    own = {value for key, value in found.items() if key not in ("BUILDER_COMPILE_CACHE_ROOT", "CUDA_CACHE_MAXSIZE")}
    assert own == {f"{caches.ROOT}/{value.rpartition('/')[2]}" for value in own}


@pytest.mark.parametrize("name", ["demo-llama-cpp", "minilm-onnxruntime-cpu"])
def test_an_engine_that_compiles_nothing_gets_none(name: str) -> None:
    assert environment(name) == {}
