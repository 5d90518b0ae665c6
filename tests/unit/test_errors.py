"""One exit code per cause, and a drawn tree that is true."""

from __future__ import annotations

import json

from builder import errors


def classes() -> list[type[errors.BuilderError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.BuilderError)]
    return sorted(found, key=lambda c: c.exit_code)


def test_every_class_has_its_own_exit_code() -> None:
    codes = [c.exit_code for c in classes()]
    assert codes == [1, 2, 3, 4, 5, 6, 7]
    assert len({c.code for c in classes()}) == len(codes)


def test_the_docstring_draws_every_class() -> None:
    for c in classes():
        line = next(line for line in (errors.__doc__ or "").splitlines() if f" {c.__name__} " in line)
        assert f" {c.exit_code} " in line


def test_json_form_keeps_position_and_hint() -> None:
    error = errors.IntegrityError("bad", hint="repair", where={"object": "chunks/x", "start": 3})
    told = json.loads(json.dumps(error.to_json()))["error"]
    assert told == {
        "code": "integrity",
        "exit": 3,
        "message": "bad",
        "hint": "repair",
        "where": {"object": "chunks/x", "start": 3},
    }


def test_a_message_cannot_drive_the_terminal() -> None:
    error = errors.ConfigError("a\x1b[2J\nb", hint="\u202ec")
    assert (error.message, error.hint) == ("a\\x1b[2J\nb", "\\u202ec")
    assert str(error) == error.message
    assert errors.printable("a\n\udcff") == "a\\n\\udcff"
