from __future__ import annotations

import doctest

import pytest

from builder import render, units
from builder.models import hub, inspect


@pytest.mark.parametrize("module", [units, render, hub, inspect])
def test_the_examples_in_docstrings_hold(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("text", ["16", "16 MB/s", "MiB", "-1MiB", "1e3MiB", "16mib", ""])
def test_a_size_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 999 << 10, 1000 << 10, 1 << 30, 1 << 50])
def test_formatted_sizes_are_short_and_close(size: int) -> None:
    text = units.format_size(size)
    assert len(text) <= 9
    assert units.parse_size(text) == pytest.approx(size, rel=0.01)
