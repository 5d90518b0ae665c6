"""Templates to text: unknown names are errors, and what a user wrote is quoted by the target's own grammar."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import Any

import jinja2

from builder import resources


def text(template: str, **values: Any) -> str:
    """The template `template` (a path under templates/) filled in. Raises on a name that `values` lacks."""
    return environment().get_template(str(PurePosixPath(template))).render(**values)


def html(template: str, **values: Any) -> str:
    """The same for a page: every value is escaped for HTML, in text and in quoted attributes."""
    return environment(autoescape=True).get_template(str(PurePosixPath(template))).render(**values)


def environment(*, autoescape: bool = False) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(resources.folder("templates"))
    env = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=autoescape,  # for pages only: Dockerfiles, YAML and Markdown have their own quoting
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["env_value"] = env_value
    env.filters["shell"] = shlex.quote
    env.filters["json"] = json.dumps
    env.filters["toml"] = json.dumps  # a TOML basic string is a JSON string for every character json.dumps emits
    return env


def env_value(value: str) -> str:
    """`value` quoted for a Dockerfile's ENV, LABEL or ARG, so that it arrives literally.

    Source: BuildKit's shell lexer (docs.docker.com/reference/dockerfile, "Environment replacement"): inside double
    quotes only backslash, double quote and dollar are special; a line cannot hold a newline.

    >>> print(env_value('a "b" $c'))
    "a \\"b\\" \\$c"
    """
    if "\n" in value or "\r" in value:
        raise ValueError("a Dockerfile value cannot hold a line break")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
