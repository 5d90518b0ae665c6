"""Which stubs an engine was seen to start with: the record behind what `builder build` says of image.stubs.

A stub that the engine calls ends its process, so a set is kept only where it has been tried. The build tries the start: its
smoke stage imports the engine as the image's user. What answers a request is tried by `builder verify`.
"""

from __future__ import annotations

from dataclasses import dataclass

from builder.config.spec import Spec


@dataclass(frozen=True, slots=True)
class Proven:
    """One set, with the release that it was tried on. how: what was run, and on what."""

    engine: str
    version: str
    stubs: frozenset[str]
    how: str


PROVEN = (
    Proven(
        "transformers",
        "5.23.0",
        frozenset(("cufft", "cufile", "curand", "cusolver", "cusparse", "cusparselt", "nccl", "nvjitlink", "nvshmem")),
        "torch 2.13.0 for CUDA 13: the smoke stage's imports and a small model's answer, on a CPU, all symbols bound at load",
    ),
)
GROUPS = ("vllm", "sglang")
"""Engines that open a torch.distributed group with NCCL for one GPU too (vLLM 0.32.0: init_distributed_environment), and
torch's ProcessGroupNCCL asks NCCL for its version as it is made (torch 2.13.0). An import, and so the smoke stage, does not."""


def warnings(spec: Spec) -> list[str]:
    """One sentence per doubt about image.stubs; none where the set is proven for this release of the engine."""
    return [one for one in (_unproven(spec), _group(spec)) if one]


def _unproven(spec: Spec) -> str:
    image = spec.image
    here = [one for one in PROVEN if (one.engine, one.version) == (image.engine.name, image.engine.version)]
    if not image.stubs or any(one.stubs.issuperset(image.stubs) for one in here):
        return ""
    best = max(here, key=lambda one: len(one.stubs & set(image.stubs)), default=None)
    beyond = [name for name in image.stubs if best is None or name not in best.stubs]
    return (
        f"image.stubs: {', '.join(beyond)} untried with {image.engine.name} {image.engine.version}; "
        "the smoke stage proves that the engine starts, `builder verify` that it answers"
    )


def _group(spec: Spec) -> str:
    if "nccl" not in spec.image.stubs or spec.image.engine.name not in GROUPS:
        return ""
    return (
        f"image.stubs: nccl: {spec.image.engine.name} opens a group with NCCL even for one GPU, "
        "so the image passes its build and stops on a GPU"
    )
