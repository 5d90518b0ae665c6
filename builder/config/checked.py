"""Sections of the description made from values that are not in a builder.yaml: the same ranges, the same kind of error."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from builder.errors import ConfigError

Section = TypeVar("Section", bound=BaseModel)


def checked(kind: type[Section], **values: Any) -> Section:
    """kind(**values). Raises ConfigError for the first value that the section does not take: its name, the fault, the value."""
    try:
        return kind(**values)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}; found {first['input']!r}") from exc
