"""Inputs made for a model of which only the metadata is known."""

from __future__ import annotations

import struct

import pytest

from builder.errors import ConfigError
from builder.runtime.v2 import Model, Spec, Tensor, prompt_inputs

PROMPT = "one two three"


def made(spec: Spec, *, batch: int = 1, prompt: str = PROMPT) -> tuple[tuple[int, ...], bytes]:
    [(_, shape, data)] = prompt_inputs(Model((spec,), ("y",)), prompt, batch=batch)
    return shape, data


def whole(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}q", data))


@pytest.mark.parametrize(
    ("shape", "batch", "fixed"),
    [
        ((-1, -1), 2, (2, 3)),
        ((-1, 8), 2, (2, 8)),
        ((1, -1), 2, (1, 3)),
        ((), 2, ()),
        ((-1,), 2, (2,)),
        ((-1, 3, -1, -1), 1, (1, 3, 3, 3)),
    ],
)
def test_open_dimensions_are_batch_and_words(shape: tuple[int, ...], batch: int, fixed: tuple[int, ...]) -> None:
    assert made(Spec("x", "FP32", shape), batch=batch)[0] == fixed


def test_whole_numbers_follow_the_name() -> None:
    assert whole(made(Spec("attention_mask", "INT64", (-1, -1)))[1]) == [1, 1, 1]
    assert whole(made(Spec("token_type_ids", "INT64", (-1, -1)))[1]) == [0, 0, 0]
    assert whole(made(Spec("position_ids", "INT64", (-1, -1)), batch=2)[1]) == [0, 1, 2, 0, 1, 2]
    ids = whole(made(Spec("input_ids", "INT64", (-1, -1)), batch=40)[1])
    assert len(ids) == 120
    assert min(ids) >= 1
    assert max(ids) <= 99
    assert len(set(ids)) > 20


def test_equal_texts_give_equal_inputs_and_others_others() -> None:
    spec = Spec("x", "FP32", (-1, 64))
    assert made(spec) == made(spec)
    assert made(spec, prompt="one two four") != made(spec)
    values = struct.unpack("<64f", made(spec)[1])
    assert all(0 <= v <= 1 for v in values)


@pytest.mark.parametrize(
    ("datatype", "size"),
    [("BOOL", 1), ("UINT8", 1), ("INT16", 2), ("FP16", 2), ("BF16", 2), ("UINT32", 4), ("FP32", 4), ("INT64", 8), ("FP64", 8)],
)
def test_every_datatype_has_its_size(datatype: str, size: int) -> None:
    assert len(made(Spec("x", datatype, (-1, 5)))[1]) == 5 * size


def test_text_is_the_prompt() -> None:
    assert made(Spec("text", "BYTES", (-1, 1)), batch=2)[1] == (struct.pack("<I", len(PROMPT)) + PROMPT.encode()) * 2


@pytest.mark.parametrize("spec", [Spec("x", "FP8", (-1,)), Spec("x", "FP32", (-1, 10**6, 10**6))])
def test_what_cannot_be_made_up_is_said(spec: Spec) -> None:
    with pytest.raises(ConfigError, match="input x: FP"):
        made(spec)


def test_a_model_takes_batches_if_all_its_inputs_do() -> None:
    open_, fixed = Spec("a", "FP32", (-1, 4)), Spec("b", "FP32", (1, 4))
    assert Model((open_,), ()).batches
    assert not Model((open_, fixed), ()).batches
    assert not Model((Spec("scalar", "FP32", ()),), ()).batches


def test_an_output_is_told_by_its_digest_and_first_values() -> None:
    said = Tensor("y", "FP32", (1, 5), struct.pack("<5f", 1.5, 2, 3, 4, 5)).summary()
    assert (said["shape"], said["first"]) == ([1, 5], [1.5, 2.0, 3.0, 4.0])
    assert said["sha256"] != Tensor("y", "FP32", (1, 5), struct.pack("<5f", 1.5, 2, 3, 4, 6)).summary()["sha256"]
    assert "first" not in Tensor("t", "BYTES", (1,), b"xxxx").summary()
