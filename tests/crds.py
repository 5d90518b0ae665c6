"""Objects against the schemas of tests/data/crds, as an API server would check them: unknown fields refused, CEL rules run.

`check(object)` returns every fault. Where BUILDER_CRDS names a folder of CustomResourceDefinition files, the originals of the
kinds in it are checked as well; rules about an object's older self (oldSelf) are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import yaml

FOLDER = Path(__file__).parent / "data" / "crds"
ORIGINALS = os.environ.get("BUILDER_CRDS", "")
_LEVEL = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
Schema = dict[str, Any]
# Words of CEL itself, which rules write with underscores. Source: Kubernetes documentation, "CustomResourceDefinitions", CEL.
RESERVED = {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "in", "let", "loop", "namespace",
            "package", "return", "var", "void", "while"}  # fmt: skip


@cache
def schemas() -> dict[tuple[str, str], list[Schema]]:
    """By (apiVersion, kind): ours, and the original if there is one."""
    found: dict[tuple[str, str], list[Schema]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        raw = yaml.safe_load(path.read_text())
        found[f"{raw['group']}/{raw['version']}", raw["kind"]] = [raw["schema"]]
    for path in sorted(Path(ORIGINALS).glob("*.yaml")) if ORIGINALS else ():
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found.setdefault(key, []).append(version["schema"]["openAPIV3Schema"])
    return found


def check(document: dict[str, Any]) -> list[str]:
    """Every fault, "" path first; a kind of which there is no schema is a fault."""
    key = (str(document.get("apiVersion")), str(document.get("kind")))
    if key not in schemas():
        return [f"no schema of {key[1]} {key[0]}"]
    faults = []
    for schema in schemas()[key]:
        whole = schema | {"properties": _LEVEL | schema["properties"]}
        validator = jsonschema.Draft7Validator(_strict(whole))
        shape = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(document)]
        faults += shape or list(_rules(whole, document, ""))
    return faults


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as a strict API server refuses them."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _rules(schema: Schema, value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and (why := _broken(rule["rule"], value)):
            yield f"{path}: {rule.get('message', rule['rule'])}{why}"
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for name, item in value.items():
            part = schema.get("properties", {}).get(name, extra)
            if isinstance(part, dict):
                yield from _rules(part, item, f"{path}.{name}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            yield from _rules(schema["items"], item, f"{path}[{number}]")


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    if isinstance(value, dict):
        return {f"__{key}__" if key in RESERVED else key: _escaped(part) for key, part in value.items()}
    return value


def _broken(rule: str, value: Any) -> str:
    """ "" if the rule holds for `self`. A rule that cannot be run does not hold, as in an API server.

    split and find are Kubernetes' additions to CEL.
    """
    context = cel.Context({"self": _escaped(value)})
    context.add_function("split", lambda text, by: text.split(by))
    context.add_function("find", lambda text, pattern: (re.search(pattern, text) or [""])[0])
    try:
        return "" if cel.evaluate(rule, context) is True else "."
    except (RuntimeError, ValueError, TypeError, KeyError) as exc:
        return f" ({exc})"
