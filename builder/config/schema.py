"""The JSON Schema of builder.yaml, for editors and for CI. Made from the spec, so it cannot disagree with it."""

from __future__ import annotations

import json
from typing import Any

from builder.config.spec import Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema as data."""
    return {"$schema": DIALECT, **Spec.model_json_schema(mode="validation"), "title": "builder.yaml"}


def text() -> str:
    """The schema as the file images/builder.schema.json holds it."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
