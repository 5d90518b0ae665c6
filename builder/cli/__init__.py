"""The command line: the only place that prints or exits. A command's module is imported only when it is named."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `builder` script."""
    from builder.cli.group import run

    run()
