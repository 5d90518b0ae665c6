"""The pages: exact Markdown, well-formed HTML, and no value that becomes markup."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from builder.format.phases import Phase
from builder.verify import page, view
from builder.verify.report import Check, VerifyReport

Make = Callable[..., VerifyReport]
EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'|`*&amp;{{7*7}}"
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Strict(HTMLParser):
    """Fails on a tag that is not closed in order; keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute of <{tag}> stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def parse(text: str) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def evil(made: VerifyReport) -> VerifyReport:
    """The report with EVIL in every text that comes from outside."""
    run = made.runs[0]
    phases = tuple(Phase(EVIL, p.start, p.end, EVIL, {EVIL: EVIL}) for p in run.phases)
    assert made.image is not None
    return dataclasses.replace(
        made,
        name=EVIL,
        manifest=EVIL,
        tool=EVIL,
        notes=(EVIL,),
        runs=(dataclasses.replace(run, phases=(*run.phases, *phases)),),
        image=dataclasses.replace(made.image, reference=EVIL, digest=EVIL, size_note=EVIL),
        host=dataclasses.replace(made.host, cpu=EVIL, system=EVIL, docker=EVIL, gpus=(EVIL,)),
        answer=dataclasses.replace(made.answer, prompt=EVIL, text=EVIL, sha256=EVIL),
        checks=(Check(EVIL, False, EVIL, EVIL),),
        load=tuple(dataclasses.replace(level, error_samples=(EVIL,)) for level in made.load),
        budgets=tuple(dataclasses.replace(b, id=EVIL) for b in made.budgets),
    )


def test_markdown(report: Make, golden: Callable[[str, str], None]) -> None:
    golden("verify/report.md", page.markdown(report()))


def test_html_is_well_formed(report: Make) -> None:
    tags = [tag for tag, _ in parse(page.html(report())).tags]
    assert {"svg", "rect", "circle", "table", "style"} <= set(tags)


def test_html_needs_nothing_else(report: Make) -> None:
    text = page.html(report())
    parsed = parse(text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"https?:|url\((?!#hatch)|@import|src=", text)


def test_no_value_becomes_markup(report: Make) -> None:
    plain, parsed = parse(page.html(report())), parse(page.html(evil(report())))
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert {k for _, attrs in parsed.tags for k in attrs} == {k for _, attrs in plain.tags for k in attrs}
    assert parsed.text.count(EVIL) >= 15  # and they are all shown, letter by letter


def test_no_value_becomes_markdown(report: Make) -> None:
    text = page.markdown(evil(report()))
    assert not re.search(r"(?<!\\)<", text)
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5, 6, 11), line


@pytest.mark.parametrize("changes", [{"load": ()}, {"budgets": ()}, {"checks": ()}, {"image": None}, {"notes": ()}])
def test_parts_may_be_absent(report: Make, changes: dict[str, Any]) -> None:
    made = report(**changes)
    parse(page.html(made))
    assert page.markdown(made).startswith("# smollm2")


def test_the_unaccounted_time_is_a_bar_of_its_own(report: Make) -> None:
    last = view.rows(report().runs[0])[-1]
    assert last.lane == last.name == "unaccounted"
    assert [(round(a, 6), round(b, 6)) for a, b in last.spans] == [(3.0, 0.5)]


def test_bars_stand_where_their_seconds_are(report: Make) -> None:
    rows = {row.name: row for row in view.rows(report().runs[0])}
    scale = page.Scale.to(4.25)
    assert scale.ticks[-1] == 5.0
    (mark,) = page.marks(rows["weights_all"], scale)
    assert (mark.x, mark.width) == (15.0, 25.0)  # 0.75 s and 1.25 s of 5 s


def test_details_of_a_phase_are_readable(report: Make) -> None:
    rows = {row.name: row for row in view.rows(report().runs[0])}
    assert rows["weights_all"].detail == "chunks 9, fetched 93.5 MiB"


def test_the_verdict_says_how_many(report: Make) -> None:
    assert view.verdict(report()) == "1 of 2 checks failed; 1 of 2 budgets missed"
    assert view.verdict(report(checks=(Check("a", True, "", ""),), budgets=())) == "the check held; no budget is set"


def test_two_reports_are_compared_phase_by_phase(report: Make, run: Callable[..., Any]) -> None:
    changes = {c.name: c for c in view.compare(report(), report(runs=(run(5.5),)))}
    assert changes["cold start"].texts == ("4.00 s", "5.50 s", "+1.50 s")
    assert changes["unaccounted"].texts == ("500 ms", "2.00 s", "+1.50 s")
    assert changes["weights_all"].texts[2] == "+0 ms"


def test_a_phase_of_one_report_only_has_no_change(report: Make, run: Callable[..., Any]) -> None:
    less = dataclasses.replace(run(), phases=run().phases[:-1])
    changes = {c.name: c for c in view.compare(report(), report(runs=(less,)))}
    assert changes["stable"].texts == ("250 ms", "-", "-")
