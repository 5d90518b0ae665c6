"""Write the generated pages: docs/cli.md from the commands' own help, docs/builder-yaml.md and the schema from the spec,
docs/lint.md from the rules, and tables in docs/bake-lint.md, docs/templates.md (what is left out) and docs/slim.md (licences).

`python scripts/docs.py --check` fails if a page is stale; a unit test calls it.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from builder.cli.group import COMMANDS, group
from builder.config import schema
from builder.image import trim
from builder.image.lint import RULES
from builder.node.lint import RULES as NODE_RULES
from builder.slim import licences

LINT = """# Lint

The rules are written by `make docs` from the code. `builder lint PATH...` reads Dockerfiles, folders of them, or standard input
(`-`); without a path, what builder.yaml renders, as `builder build` does before each build. An error ends it with exit code 2,
a warning only with `--strict`. `--sarif FILE` writes the findings for code scanning; `--format json` prints them.

```
builder lint docker/ --gpu 9.0 --sarif lint.sarif
# builder lint ignore=root-user      a comment above an instruction, with the reason after it on a line of its own
```

They are what [hadolint](https://github.com/hadolint/hadolint) does not know about CUDA; run both.
"""
ROOT = Path(__file__).resolve().parents[1]


def cli_page() -> str:
    parts = [
        "# Command line\n",
        "Written by `make docs` from the commands' own help.\n",
        "```text",
        _help(group, "builder"),
        "```\n",
    ]
    for name in COMMANDS:
        command = importlib.import_module(COMMANDS[name][0]).command
        parts += _section(command, f"builder {name}", 2)
    return "\n".join(parts)


def _section(command: click.Command, path: str, level: int) -> list[str]:
    out = [f"{'#' * level} {path}\n", "```text", _help(command, path), "```\n"]
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            sub = command.get_command(ctx, name)
            assert sub is not None
            out += _section(sub, f"{path} {name}", level + 1)
    return out


def _help(command: click.Command, path: str) -> str:
    return command.get_help(click.Context(command, info_name=path, max_content_width=110, terminal_width=110)).rstrip()


def lint_page() -> str:
    rows = [f"| `{r.id}` | {r.severity} | {r.title} | {r.why} | {r.fix} |" for r in RULES]
    return "\n".join([LINT, "| rule | severity | finds | why | fix |", "|---|---|---|---|---|", *rows, ""])


def bake_lint_page() -> str:
    rows = [f"| `{r.id}` | {r.severity} | {r.title} | {r.why} | {r.fix} | {r.source} |" for r in NODE_RULES]
    head = ["| rule | severity | finds | why | fix | source |", "|---|---|---|---|---|---|"]
    return _between("docs/bake-lint.md", "rules", "\n".join([*head, *rows, ""]))


def templates_page() -> str:
    rows = [f"| {r.cause} | {', '.join(f'`{p}`' for p in r.patterns)} | {r.why} |" for r in trim.RULES]
    rows += [f"| symbols | `*.so*` | {trim.SYMBOLS} |", f"| duplicates | any | {trim.DUPLICATES} |"]
    return _between(
        "docs/templates.md", "rules", "\n".join(["| cause | files below site-packages | why |", "|---|---|---|", *rows, ""])
    )


def slim_page() -> str:
    return _between("docs/slim.md", "licences", licences.page())


def _between(page: str, name: str, table: str) -> str:
    """The page as it is, with what is between its two marks written anew."""
    head, mark, rest = (ROOT / page).read_text().partition(f"<!-- {name}: written by `make docs` -->\n")
    _, end, tail = rest.partition(f"<!-- end of {name} -->")
    return f"{head}{mark}\n{table}\n{end}{tail}"


def config_page() -> str:
    spec = schema.schema()
    parts = ["# builder.yaml\n", "Written by `make docs` from the spec. Unknown keys are refused.\n"]
    parts += _table("", spec, spec["$defs"])
    return "\n".join(parts)


def _table(path: str, part: dict[str, Any], defs: dict[str, Any]) -> list[str]:
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for name, field in part["properties"].items():
        key = f"{path}{name}"
        inner = _target(field, defs)
        default = f"`{_plain(field.get('default'))}`" if inner is None or field.get("default") is True else ""
        need = "required" if name in part.get("required", []) else default
        meaning = field.get("description") or (inner or {}).get("description", "")
        rows.append(f"| `{key}` | {_takes(field)} | {need} | {meaning} |")
        if inner is not None:
            below += [f"## {key}\n", inner.get("description", "") + "\n", *_table(f"{key}.", inner, defs)]
    return [*rows, "", *below]


def _target(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a field refers to, if it is one."""
    for option in [field, *field.get("anyOf", [])]:
        if "$ref" in option:
            return dict(defs[option["$ref"].rsplit("/", 1)[1]])
    return None


def _takes(field: dict[str, Any]) -> str:
    options = [o for o in field.get("anyOf", [field]) if o.get("type") != "null"]
    return " or ".join(_one(o) for o in options)


def _one(option: dict[str, Any]) -> str:
    if "$ref" in option:
        return "keys"
    if "enum" in option:
        return ", ".join(f"`{v}`" for v in option["enum"])
    if "const" in option:
        return f"`{option['const']}`"
    if option.get("type") == "array":
        return "list of " + _one(option["items"])
    if option.get("pattern", "").endswith("iB)$"):
        return "size"
    if option.get("pattern", "").endswith("|h)$"):
        return "duration"
    names = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "keys and values"}
    return names[option["type"]]


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return json.dumps(value)


def main() -> int:
    pages = {
        "docs/cli.md": cli_page(),
        "docs/builder-yaml.md": config_page(),
        "docs/lint.md": lint_page(),
        "docs/bake-lint.md": bake_lint_page(),
        "docs/templates.md": templates_page(),
        "docs/slim.md": slim_page(),
        "images/builder.schema.json": schema.text(),
    }
    stale = [name for name, text in pages.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    if "--check" in sys.argv:
        for name in stale:
            sys.stderr.write(f"{name} is stale; run `make docs`\n")
        return bool(stale)
    for name, text in pages.items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
