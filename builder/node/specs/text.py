"""YAML and JSON as people write them, and the comments above them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builder.node.specs.ref import SnapshotRef

Hot = Mapping[str, str]  # what reads the hot blocks, by suffix, as builder.node.hot.reader.files gives it; empty for none
NONE: Hot = {}


def yaml_text(*documents: dict[str, Any], note: str = "") -> str:
    """The documents, plain enough for kubectl and for people: no anchors, long strings as blocks."""
    import yaml  # not needed to bake

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return note + yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120)


def json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def comment(*lines: str) -> str:
    return "".join(f"# {line}\n" if line else "#\n" for line in lines)


def apply_line(ref: SnapshotRef, *more: str) -> str:
    """How a file with placeholders is applied; "" where nothing is left to fill in. more: further placeholders."""
    names = [text[2:-1] for text in (ref.id, ref.cluster) if text.startswith("${")] + list(more)
    if not names:
        return comment("kubectl apply -f THIS_FILE")
    given = " ".join(f"{n}=..." for n in names)
    only = " ".join(f"${{{n}}}" for n in names)
    return comment(f"{given} envsubst '{only}' < THIS_FILE | kubectl apply -f -")


def hydration_lines(ref: SnapshotRef) -> list[str]:
    """The plan of builder.node.hydrate, for a comment."""
    return [f"Hydration: {ref.hydration}.", *([f"{ref.hydration.advice}."] if ref.hydration.advice else [])]
