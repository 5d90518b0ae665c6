from __future__ import annotations

import jinja2
import pytest

from builder import render


def test_a_name_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="nope"):
        render.environment().from_string("{{ nope }}").render()


@pytest.mark.parametrize("value", ["a\nENV EVIL=1", "a\rb"])
def test_a_line_break_cannot_smuggle_in_an_instruction(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        render.env_value(value)
