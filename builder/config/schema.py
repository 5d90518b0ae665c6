"""The JSON Schema of builder.yaml, for editors and for CI. Made from the spec, so it cannot disagree with it."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from collections.abc import Iterator
from typing import Any

from builder.config import spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema as data."""
    found = spec.Spec.model_json_schema(mode="validation")
    for section, field, text in _docstrings():
        part = found if section == "Spec" else found["$defs"][section]
        part["properties"][field]["description"] = text
    return {"$schema": DIALECT, **found, "title": "builder.yaml"}


def _docstrings() -> Iterator[tuple[str, str, str]]:
    """Section, field, and the text under the field. pydantic's own use_attribute_docstrings would read and parse the source of
    every section at each start of every command, a tenth of `builder render`."""
    sections = [part for part in ast.parse(inspect.getsource(spec)).body if isinstance(part, ast.ClassDef)]
    for section in sections:
        for field, below in itertools.pairwise(section.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                yield section.name, ast.unparse(field.target), inspect.cleandoc(str(below.value.value))


def text() -> str:
    """The schema as the file images/builder.schema.json holds it."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
