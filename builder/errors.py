"""Every error a user can meet, one exit code per cause.

    BuilderError            1    it failed, and no class below says it better
    ├── ConfigError         2    usage, or a builder.yaml that is wrong
    ├── IntegrityError      3    bytes are not what their digest, header or manifest says
    ├── CapabilityError     4    this machine lacks something: docker, root, a GPU, disk space, permission
    ├── RemoteError         5    a store or hub refused, timed out or cannot be reached
    ├── BudgetError         6    it works, but slower or larger than verify.budget allows
    └── ClaimError          7    the image does not do what it claims
    Ctrl-C                130    (KeyboardInterrupt; no class)

`plan --detailed-exitcode` alone exits 10. This file ships inside images: standard library, Python 3.10.
"""

from __future__ import annotations

from typing import Any, ClassVar


def printable(text: str, *, keep: str = "") -> str:
    """`text` with what a terminal would act on, or not show, escaped: names of files and tensors come from strangers.

    keep: characters to leave as they are.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class BuilderError(Exception):
    """What happened, with values; what to do about it, apart from it.

    message: one line, or one line per fault; names file and key, or object, tensor and byte range.
    hint: one next step, imperative; empty when there is none.
    where: the same position as data, for `--format json`: file, line, column, key, object, tensor, start, end.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str = "", where: dict[str, Any] | None = None) -> None:
        self.message = printable(message, keep="\n")
        super().__init__(self.message)
        self.hint = printable(hint, keep="\n")
        self.where = dict(where or {})
        self.shown = False  # set by a command whose printed result already holds this error

    def to_json(self) -> dict[str, Any]:
        """The error as the one object that `--format json` prints."""
        return {
            "error": {
                "code": self.code,
                "exit": self.exit_code,
                "message": self.message,
                "hint": self.hint,
                "where": self.where,
            }
        }


class ConfigError(BuilderError):
    """The command line or builder.yaml is wrong; nothing was done."""

    exit_code = 2
    code = "config"


class IntegrityError(BuilderError):
    """Bytes differ from what their digest, header or manifest says. Never retried, never ignored."""

    exit_code = 3
    code = "integrity"


class CapabilityError(BuilderError):
    """This machine lacks something the command needs."""

    exit_code = 4
    code = "environment"


class RemoteError(BuilderError):
    """A store, registry or hub refused, timed out or cannot be reached. Trying again may help."""

    exit_code = 5
    code = "remote"


class BudgetError(BuilderError):
    """A measured figure is above its budget."""

    exit_code = 6
    code = "budget"


class ClaimError(BuilderError):
    """The built image does not do what it claims."""

    exit_code = 7
    code = "claim"
