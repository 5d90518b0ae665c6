"""What a container is asked for, without starting one."""

from __future__ import annotations

import pytest

from builder.errors import CapabilityError
from builder.verify import container, host
from builder.verify.launch import Launch


def test_a_gpu_is_asked_for_as_the_nvidia_toolkit_expects_it() -> None:
    [request] = container._limits(container.Options(), gpu=True, models=False)["device_requests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
    assert not container._limits(container.Options(), gpu=False, models=False).get("device_requests")


@pytest.mark.parametrize(
    ("setting", "gpus", "wanted"),
    [
        ("auto", ("H100",), True),
        ("auto", (), False),
        ("none", ("H100",), False),
        ("required", ("H100",), True),
    ],
)
def test_a_gpu_is_wanted_where_there_is_one_and_the_description_allows(
    setting: str, gpus: tuple[str, ...], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "gpus", lambda: gpus)
    assert container.wants_gpu(setting) is wanted


def test_a_required_gpu_that_is_not_there_exits_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "gpus", lambda: ())
    with pytest.raises(CapabilityError, match=r"verify\.gpu is required"):
        container.wants_gpu("required")


def test_a_container_without_a_gpu_is_told_that_it_needs_none() -> None:
    """Else an image for GPUs would refuse to start, where verify.gpu is auto or none and its CPU path is meant."""
    launch = Launch("m", "sha256:0", "/store", "vllm")
    assert container._environment(launch, container.Options(), gpu=False)["BUILDER_GPU"] == "none"
    assert "BUILDER_GPU" not in container._environment(launch, container.Options(), gpu=True)
    wanted = container.Options(env={"BUILDER_GPU": "required"})
    assert container._environment(launch, wanted, gpu=False)["BUILDER_GPU"] == "required"
