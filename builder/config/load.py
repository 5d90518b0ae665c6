"""builder.yaml to Spec. Every refusal names file, line, column and key, says what was found, and guesses what was meant.

PyYAML: `yaml.compose` keeps the position of every node, which the plain loaders drop. Its YAML 1.1 readings of `3.10`,
`no` and `12:30` meet the strict types of the spec and become errors that show the text as it was written.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from builder.config.spec import SECRET_LOOK, Spec
from builder.errors import ConfigError

FILE = "builder.yaml"
SCHEMA_HEADER = "# yaml-language-server: $schema="
MAX_BYTES = 1 << 20
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Loaded:
    """A description, and where it lay: relative paths in it count from its folder."""

    spec: Spec
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    def path_of(self, text: str) -> Path:
        """`text` as a path; relative ones count from the file's folder."""
        return (self.folder / Path(text).expanduser()).absolute()

    @property
    def store_url(self) -> str:
        """weights.store; a folder as an absolute path."""
        store = self.spec.weights.store
        return store if "://" in store else str(self.path_of(store))

    @property
    def model_source(self) -> str:
        """model.source; a folder or file as an absolute path."""
        source = self.spec.model.source
        return source if "://" in source else str(self.path_of(source))


def load(path: Path | None) -> Loaded:
    """The description in `path`; default: builder.yaml in the current folder. Raises ConfigError."""
    path = path or Path(FILE)
    if path.is_dir():
        path = path / FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file", hint="`builder init` writes one; -f names another") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    return Loaded(parse(text, str(path)), path.absolute())


def parse(text: bytes, at: str) -> Spec:
    """The description in `text`. at: the file's name for messages."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{at}: {len(text)} bytes; expected at most {MAX_BYTES}")
    try:
        alias = next((token for token in yaml.scan(text) if isinstance(token, yaml.AliasToken)), None)
        if alias is not None:
            raise _error(at, alias, (), "YAML aliases (*name) are not used here", "write the value out")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(tree, yaml.MappingNode):
            raise ConfigError(f"{at}:1:1: expected keys and values, found {'nothing' if tree is None else 'something else'}")
        _refuse_duplicates_and_secrets(tree, at, ())
        value = _Constructor().construct_document(tree)
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise _not_yaml(exc, at) from exc
    except RecursionError as exc:
        raise ConfigError(f"{at}: nested too deeply", hint="no key of builder.yaml lies deeper than four levels") from exc
    try:
        return Spec.model_validate(_tuples(value))
    except ValidationError as exc:
        raise _refusal(exc, tree, at) from exc


class _Trap:
    """A number that YAML 1.1 reads in base 60 or base 8. No field takes one, so it is refused wherever it stands."""


class _Constructor(yaml.constructor.SafeConstructor):
    """SafeLoader's constructor, for a tree that is already composed; `12:30` and `017` become traps, not 750 and 15."""


def _number(constructor: _Constructor, node: yaml.ScalarNode) -> object:
    if ":" in node.value or re.match(r"[-+]?0[0-9_]", node.value):
        return _Trap()
    kind = yaml.constructor.SafeConstructor
    if node.tag.endswith(":int"):
        return kind.construct_yaml_int(constructor, node)
    return kind.construct_yaml_float(constructor, node)


for _tag in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)  # type: ignore[type-var]  # stubs want a Loader


def _tuples(value: Any) -> Any:
    """YAML lists as tuples, because frozen specs hold tuples and strict validation takes no list for one."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _not_yaml(exc: Exception, at: str) -> ConfigError:
    mark = getattr(exc, "problem_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = getattr(exc, "problem", None) or str(exc).splitlines()[0]
    hint = "indent with spaces" if "\\t" in problem else ""
    return ConfigError(
        f"{at}:{line}:{column}: not YAML: {problem}", hint=hint, where={"file": at, "line": line, "column": column}
    )


def _refuse_duplicates_and_secrets(node: yaml.Node, at: str, key: Key) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _error(at, name, key, "a key must be text")
            if name.value in seen:
                raise _error(at, name, (*key, name.value), "occurs twice")
            seen.add(name.value)
            _refuse_duplicates_and_secrets(value, at, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _refuse_duplicates_and_secrets(value, at, (*key, index))
    elif isinstance(node, yaml.ScalarNode) and SECRET_LOOK.search(node.value):
        hint = "keep it in an environment variable and name that: token: {env: HF_TOKEN}; revoke the one that stood here"
        raise _error(at, node, key, "looks like a secret", hint)


def _refusal(exc: ValidationError, tree: yaml.Node, at: str) -> ConfigError:
    """All faults in one error, in the order of the file."""
    by_place: dict[str, ConfigError] = {}
    for error in exc.errors(include_url=False):
        one = _one(error, tree, at)
        by_place.setdefault(one.where["key"], one)  # a union reports once per branch; the first branch is the main one
    for key in [k for k in by_place if any(other.startswith(f"{k}.") for other in by_place)]:
        del by_place[key]  # and a fault inside a section says more than that the section is not the other branch
    errors = sorted(by_place.values(), key=lambda e: (e.where["line"], e.where["column"]))
    first = errors[0]
    message = "\n".join(e.message for e in errors)
    where = {**first.where, "faults": [e.where for e in errors]} if len(errors) > 1 else first.where
    return ConfigError(message, hint=next((e.hint for e in errors if e.hint), ""), where=where)


def _one(error: ErrorDetails, tree: yaml.Node, at: str) -> ConfigError:
    key = _written_key(error["loc"], tree)
    node, name = _find(tree, key)
    kind = error["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(key[-1]), _keys_of(key[:-1]), n=1)
        meant = f"; did you mean '{close[0]}'?" if close else ""
        known = "" if close else "known keys: " + ", ".join(_keys_of(key[:-1]))
        return _error(at, name or node, key, f"unknown key{meant}", known)
    if kind == "missing":
        parent, _ = _find(tree, key[:-1])
        return _error(at, parent, key, "is missing")
    found = f"; found {_shown(node)}" if isinstance(node, yaml.ScalarNode) and not _private(key, node.value) else ""
    return _error(at, node, key, _expected(error) + found, _quote_hint(node, kind, key))


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    simple = {
        "string_type": "expected text",
        "int_type": "expected a whole number",
        "bool_type": "expected true or false",
        "tuple_type": "expected a list",
        "model_type": "expected keys and values",
        "model_attributes_type": "expected keys and values",
        "dict_type": "expected keys and values",
    }
    if kind in simple:
        return simple[kind]
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"expected text that matches {context['pattern']}"
    if kind == "value_error":
        return str(context["error"])
    return error["msg"][:1].lower() + error["msg"][1:]


def _quote_hint(node: yaml.Node, kind: str, key: Key) -> str:
    if kind == "model_type" and key[-1] in ("token", "password"):
        return f"keep it in an environment variable and name that: {key[-1]}: {{env: NAME}}"
    if kind == "string_type" and isinstance(node, yaml.ScalarNode) and node.style is None:
        return f'YAML reads {node.value} as a {node.tag.rsplit(":", 1)[1]}; write it in quotes: "{node.value}"'
    return ""


def _private(key: Key, value: str) -> bool:
    """Whether what stands there may be a password: it is refused without being repeated."""
    return key[-1:] in (("token",), ("password",)) or bool(re.search(r"://.*@|:[^/]*@", value))


def _shown(node: yaml.ScalarNode) -> str:
    kind = node.tag.rsplit(":", 1)[1]
    if kind in ("null", "str"):
        return f"'{node.value[:60]}'" if kind == "str" else "nothing"
    return f"the {'number' if kind in ('int', 'float') else kind} {node.value}"


def _written_key(loc: Key, tree: yaml.Node) -> Key:
    """pydantic's location without the names of union branches, which stand in no file."""
    key: list[str | int] = []
    node: yaml.Node | None = tree
    for part in loc:
        nxt = _child(node, part) if node else None
        if nxt is None and part is not loc[-1] and not isinstance(part, int):
            continue
        if nxt is None and re.match(r"(function-|literal|constrained|(str|int|bool)$|[A-Z])", str(part)):
            continue
        key.append(part)
        node = nxt
    return tuple(key)


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((v for k, v in node.value if k.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value: yaml.Node = node.value[part]
        return value
    return None


def _find(tree: yaml.Node, key: Key) -> tuple[yaml.Node, yaml.Node | None]:
    """The deepest node on the way to `key`, and its key's own node."""
    node, name = tree, None
    for part in key:
        nxt = _child(node, part)
        if nxt is None:
            break
        if isinstance(node, yaml.MappingNode):
            name = next(k for k, _ in node.value if k.value == str(part))
        node = nxt
    return node, name


def _keys_of(key: Key) -> list[str]:
    """The keys that the part of the spec at `key` knows."""
    model: type[BaseModel] = Spec
    for part in key:
        if isinstance(part, int):
            continue
        inner = model.model_fields[str(part)].annotation
        options = (inner, *get_args(inner))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)


def _error(at: str, node: yaml.Node | yaml.Token, key: Key, problem: str, hint: str = "") -> ConfigError:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in key).lstrip(".")
    where = {"file": at, "line": line, "column": column, "key": dotted}
    sep = ": " if dotted else ""
    return ConfigError(f"{at}:{line}:{column}: {dotted}{sep}{problem}", hint=hint, where=where)
