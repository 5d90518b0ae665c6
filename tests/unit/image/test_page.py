"""The page: a map whose areas are the sizes, all values escaped, nothing fetched."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.image.owners import CAUSES
from builder.image.page import COLOURS, bar, html, tiles
from builder.image.report import Dropped, Group, ImageReport, Installed, Layer, Library
from builder.image.treemap import Rect, squarify
from builder.image.versus import compare

SIZES = st.lists(st.floats(min_value=1e-3, max_value=1e9), max_size=40).map(lambda sizes: sorted(sizes, reverse=True))


@given(SIZES, st.floats(min_value=1, max_value=2000), st.floats(min_value=1, max_value=2000))
def test_areas_are_proportional_and_cells_lie_within_and_apart(sizes: list[float], width: float, height: float) -> None:
    cells = squarify(sizes, Rect(3, 5, width, height))
    assert len(cells) == len(sizes)
    slack = 1e-6 * max(width, height)
    for size, cell in zip(sizes, cells, strict=True):
        assert cell.width * cell.height == pytest.approx(
            width * height * size / sum(sizes), rel=1e-6, abs=1e-9 * width * height
        )
        assert 3 - slack <= cell.x
        assert cell.x + cell.width <= 3 + width + slack
        assert 5 - slack <= cell.y
        assert cell.y + cell.height <= 5 + height + slack
    for number, a in enumerate(cells):
        for b in cells[number + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert across <= slack or down <= slack


def test_the_example_of_the_paper() -> None:
    """Bruls et al., figure 4: 6, 6, 4, 3, 2, 2, 1 in 6 x 4."""
    cells = squarify([6, 6, 4, 3, 2, 2, 1], Rect(0, 0, 6, 4))
    assert [(round(c.width, 2), round(c.height, 2)) for c in cells[:4]] == [(3, 2), (3, 2), (1.71, 2.33), (1.29, 2.33)]


@pytest.mark.parametrize("sizes", [[1, 2], [1, 0], [-1]])
def test_sizes_must_be_positive_and_fall(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and fall"):
        squarify(sizes, Rect(0, 0, 1, 1))


def group(cause: str, package: str, packed: int, manager: str = "python") -> Group:
    return Group(cause, package, manager, packed, 3 * packed, 7)


EVIL = "<script>alert(1)</script>"
REPORT = ImageReport(
    reference="r/m:1", digest="sha256:" + "0" * 64, platform="linux/amd64", others=("linux/arm64",),
    layers=(Layer("sha256:" + "1" * 64, "", 9_000, 27_000, 9, False, "RUN " + EVIL, {"torch": 6_000, "system": 3_000}),
            Layer("sha256:" + "2" * 64, "", 1_000, 3_000, 1, False, "", {"hidden by a later layer": 1_000})),
    groups=(group("torch", "torch", 6_000), group("system", "/usr/" + EVIL, 2_990, "path"),
            *(group("system", f"tiny{n}", 1, "debian") for n in range(10)), group("hidden by a later layer", "numpy", 1_000)),
    libraries=(Library("a/" + EVIL, "torch", 5, 9, 0),),
    installed=(Installed("torch", "2.13", "torch", 100, 40), Installed("none", "1", "x", 0, 0)),
    dropped=(Dropped("headers", EVIL, 60, 3),),
    env={"A": EVIL}, labels={EVIL: "x"}, entrypoint=(EVIL,),
)  # fmt: skip


def test_the_map_shows_every_byte() -> None:
    shown = tiles(REPORT)
    assert {one.cause for one in shown} == {"torch", "system", "hidden by a later layer"}
    assert sum(one.rect.width * one.rect.height for one in shown) == pytest.approx(100 * 100)
    torch = next(one for one in shown if one.name == "torch")
    assert torch.rect.width * torch.rect.height == pytest.approx(6_000)


def test_what_is_too_small_to_be_drawn_is_drawn_together() -> None:
    assert "10 smaller packages" in {one.name for one in tiles(REPORT)}
    assert not any(one.name.startswith("tiny") for one in tiles(REPORT))


def test_bars_are_as_long_as_their_layer() -> None:
    assert [(cause, width) for cause, _, width, _ in bar(REPORT.layers[0], REPORT)] == [("torch", 66.667), ("system", 33.333)]
    assert [width for _, _, width, _ in bar(REPORT.layers[1], REPORT)] == [11.111]


def test_the_page_needs_nothing_else_and_escapes_every_value() -> None:
    text = html(REPORT, compare(replace(REPORT, reference=EVIL, groups=()), REPORT))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 8
    assert not re.search(r"(src|href)=|@import|url\(|https?://", text)
    for word in ("10 smaller packages", "headers", "Against", "linux/arm64", "60 %"):
        assert word in text, word


def test_an_image_without_bytes_has_a_page() -> None:
    assert "What fills it" in html(replace(REPORT, layers=(), groups=(), libraries=(), installed=(), dropped=()))


def test_every_cause_has_a_colour_that_white_text_stands_on() -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 between text and what is behind it."""
    assert set(COLOURS) == set(CAUSES)
    for cause, colour in COLOURS.items():
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 4.5, cause
