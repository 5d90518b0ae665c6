"""Files to facts. Whatever a file turns out to be, it ends as a fact or as one fault with a line; nothing is contacted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from builder.errors import ConfigError
from builder.node.lint import objects, tomls, userdata, yamls
from builder.node.lint.facts import Facts, Fault
from builder.node.lint.part import Mark, Part, Source

MAX_BYTES = 8 << 20  # rendered charts reach 3 MiB
MAX_JSON_BYTES = 1 << 20  # of JSON found in a folder: larger is data, not a launch template
SUFFIXES = (".yaml", ".yml", ".toml", ".json", ".mime")
_TEMPLATE = re.compile(r"\{\{-?\s")
_SKIPPED = (".git", "node_modules", ".venv", "__pycache__")
STDIN = Path("-")


def find(paths: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Files to read, and whether they were found in a folder, not named. Links to folders are not followed.

    Raises ConfigError for a path that is not there.
    """
    for path in paths:
        if path.is_dir():
            for folder, inside, names in os.walk(path):
                inside[:] = sorted(name for name in inside if name not in _SKIPPED)
                found = (Path(folder, name) for name in sorted(names) if name.endswith(SUFFIXES))
                yield from ((one, True) for one in found if one.is_file())
        elif path.is_file():
            yield path, False
        else:
            raise ConfigError(f"{path}: {'not a file' if path.exists() else 'no such file or folder'}")


def collect(facts: Facts, path: Path, *, in_folder: bool = False, body: bytes | None = None) -> None:
    """What the file says, into `facts`. body: instead of the file's own."""
    root = Part(None, Source(path, {(): Mark(1, 1)}), ())
    try:
        text = _text(path, in_folder, body)
        if text is None:
            return
        _dispatch(facts, root, text, in_folder)
    except yamls.Unreadable as exc:
        facts.faults.append(Fault(root, str(exc), exc.line))


def _dispatch(facts: Facts, root: Part, text: str, in_folder: bool) -> None:
    path, start = root.source.path, text.lstrip()[:200].lower()
    marked = Part(text, Source(path, {(): Mark(1, 1, 1)}, "", yamls.comments(text)))
    if path.suffix == ".toml":
        _toml(facts, tomls.read(text, path))
    elif start.startswith(("mime-version:", "content-type: multipart", "#!", "[settings", "settings.", "#cloud-config")):
        userdata.collect(facts, marked, text, "")
    elif path.suffix == ".json" or start.startswith(("{", "[")):
        _json(facts, root, text, in_folder)
    else:
        _yaml(facts, root, text)


def _text(path: Path, in_folder: bool, body: bytes | None) -> str | None:
    """None: a file that cannot be configuration."""
    try:
        if body is None:
            limit = MAX_JSON_BYTES if in_folder and path.suffix == ".json" else MAX_BYTES
            with path.open("rb") as file:
                body = file.read(limit + 1)
            if len(body) > limit and limit == MAX_JSON_BYTES:
                return None
        if len(body) > MAX_BYTES:
            raise yamls.Unreadable(f"larger than {MAX_BYTES >> 20} MiB, so it is no configuration of a node")
        return body.removeprefix(b"\xef\xbb\xbf").decode()
    except OSError as exc:
        raise yamls.Unreadable(f"cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        line = (body or b"").count(b"\n", 0, exc.start) + 1
        raise yamls.Unreadable(f"byte {exc.start} is not UTF-8", line) from exc


def _toml(facts: Facts, root: Part) -> None:
    facts.documents.append(root)
    if root.at("settings").there:
        userdata.settings(facts, root)
    if root.at("plugins").there or root.at("proxy_plugins").there or root.at("disabled_plugins").there:
        facts.containerd.append(root)
    if root.at("package", "metadata", "build-variant").there:
        facts.variants.append(root)


def _json(facts: Facts, root: Part, text: str, in_folder: bool) -> None:
    """json says first whether it is JSON, and so which of the two a fault is; YAML then says where things stand."""
    try:
        raw = json.loads(text)
    except RecursionError as exc:
        raise yamls.Unreadable("nested too deeply") from exc
    except ValueError as exc:
        if root.source.path.suffix != ".json":
            return _yaml(facts, root, text)  # a YAML flow mapping
        if in_folder:
            return None  # settings of an editor, with comments: not for nodes
        raise yamls.Unreadable(f"not JSON: {exc}", getattr(exc, "lineno", 1)) from exc
    return _yaml(facts, root, _as_yaml(text), raw)


def _as_yaml(text: str) -> str:
    """JSON is YAML but for tabs, letters that YAML does not print, and characters that are two escapes."""
    pairs = re.sub(
        r"\\u(d[89ab]..)\\u(d[c-f]..)",
        lambda m: f"\\U{0x10000 + ((int(m[1], 16) - 0xD800) << 10) + int(m[2], 16) - 0xDC00:08X}",
        text,
        flags=re.IGNORECASE,
    )
    return re.sub(r"[\t\x7f-\x9f]", " ", pairs)


def _yaml(facts: Facts, root: Part, text: str, json_value: object = None) -> None:
    """json_value: what the text is, where json took it and YAML may not, such as half a surrogate pair."""
    try:
        parts, twice = yamls.read(text, root.source.path)
    except yamls.Unreadable as exc:
        if json_value is not None and str(exc).startswith("not YAML"):
            return objects.collect(facts, replace(root, raw=json_value))
        if _TEMPLATE.search(text):
            message = "a template, not YAML yet: lint what `helm template` renders"
            facts.faults.append(Fault(root, message, exc.line, "warning"))
            return None
        raise
    facts.faults.extend(Fault(root, str(one), one.line) for one in twice)
    for part in parts:
        objects.collect(facts, part)
    return None
