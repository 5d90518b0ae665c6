"""Each rule: files that break it, and twins that do not. `# finds RULE SEVERITY` stands on each line that must be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builder.node.lint import RULES, Disk, lint, open_disk

HERE = Path(__file__).with_name("lint")
BAD = sorted((HERE / "bad").iterdir())
_FINDS = re.compile(r"# finds (.+)$")


def disk_of(path: Path) -> Disk | None:
    return open_disk(HERE / "disk.img.json") if ".disk." in path.name else None


def expected(path: Path) -> list[tuple[int, str, str]]:
    """(line, rule, severity) of every mark in the file."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := _FINDS.search(line):
            found += [(number, *one.split()) for one in match[1].split(", ")]
    return sorted(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.name)
def test_what_is_wrong_is_found_where_it_stands(path: Path) -> None:
    assert expected(path)
    assert sorted((f.line, f.rule, f.severity) for f in lint([path], disk=disk_of(path))) == expected(path)


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.name)
def test_the_sound_twin_has_no_finding(path: Path) -> None:
    twin = HERE / "good" / path.name
    assert [str(f) for f in lint([twin], disk=disk_of(twin))] == []


def test_every_rule_has_a_file_that_breaks_it() -> None:
    assert {rule for path in BAD for _, rule, _ in expected(path)} == {rule.id for rule in RULES}
    assert {path.name for path in BAD} == {path.name for path in (HERE / "good").iterdir()}


def test_rules_are_whole_sentences() -> None:
    for rule in RULES:
        assert rule.severity in ("error", "warning")
        assert rule.title
        assert rule.source
        assert rule.why.endswith("."), rule.id
        assert rule.fix.endswith("."), rule.id
