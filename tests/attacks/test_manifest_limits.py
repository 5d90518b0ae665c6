"""What a hostile manifest may not cost, and names and numbers that no disk or reader can take."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc

import pytest

from builder.errors import IntegrityError
from builder.format import manifest as form
from tests.attacks.hostile import manifest, path

HOLES = {
    "half_a_surrogate_pair_in_path": path("\ud800"),
    "path_part_of_300_bytes": path("a" * 300),
    "path_part_of_300_bytes_in_utf8": path("é" * 150),
    "path_of_5000_bytes": path("/".join(["a" * 100] * 50)),
    "reserved_folder_in_capitals": path(".BUILDER/complete"),
    "row_larger_than_its_tensor": manifest(lambda f: f["tensors"]["t"].update(row_bytes=9)),
    "row_of_4000_digits": manifest(lambda f: f["tensors"]["t"].update(row_bytes=10**4000)),
    "shape_of_4000_digits": manifest(lambda f: f["tensors"]["t"].update(shape=[10**4000])),
    "half_a_surrogate_pair_in_a_tensor_name": manifest(lambda f: f.update(tensors={"\ud800": f["tensors"]["t"]})),
}


@pytest.mark.parametrize("fault", HOLES)
def test_refused(fault: str) -> None:
    with pytest.raises(IntegrityError):
        form.parse(HOLES[fault], at="x")


def test_a_deep_path_costs_no_more_than_its_length() -> None:
    body = path("/".join("a" * 20_000))
    tracemalloc.start()
    with contextlib.suppress(IntegrityError):
        form.parse(body, at="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * len(body) + (8 << 20)


def test_a_path_twice_among_many_is_found_in_bounded_time() -> None:
    file = json.loads(manifest(lambda f: f.update(tensors={})))["files"][0]
    rows = [{**file, "path": f"f{i}"} for i in range(20_000)]
    start = time.process_time()
    with pytest.raises(IntegrityError, match="occurs twice"):
        form.parse(manifest(files=[*rows, rows[-1]]), at="x")
    assert time.process_time() - start < 2.0


def test_a_message_is_no_longer_than_a_screen() -> None:
    with pytest.raises(IntegrityError) as caught:
        form.parse(path("../" + "a" * 100_000), at="x")
    assert len(caught.value.message) < 2000
