"""builder verify and builder report, as far as no server is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from builder.cli.report import command as report_command
from builder.cli.verify import command as verify_command
from builder.errors import ConfigError
from builder.verify import files
from builder.verify.report import VerifyReport

Make = Callable[..., VerifyReport]


def invoke(command: object, *args: str) -> str:
    result = CliRunner().invoke(command, list(args), catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_prints_the_whole_report(report: Make, tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    files.write(report(), tmp_path)
    golden("verify/show.txt", invoke(report_command, "show", str(tmp_path)))


def test_show_as_json_is_the_report(report: Make, tmp_path: Path) -> None:
    files.write(report(), tmp_path)
    assert json.loads(invoke(report_command, "show", "--format", "json", str(tmp_path))) == report().to_json()


def test_html_writes_the_pages_again(report: Make, tmp_path: Path) -> None:
    first = files.write(report(), tmp_path)
    before = first.html.read_text()
    first.html.unlink()
    assert str(first.html) in invoke(report_command, "html", str(tmp_path / "report.json"))
    assert first.html.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_compare_puts_phases_side_by_side(report: Make, run: Callable[..., object], tmp_path: Path) -> None:
    files.write(report(), tmp_path / "a")
    files.write(report(runs=(run(5.5),)), tmp_path / "b")
    golden = invoke(report_command, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "cold start" in golden
    assert "+1.50 s" in golden


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        invoke(report_command, "show", str(tmp_path / "nothing.json"))


def test_container_options_do_not_go_with_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        invoke(verify_command, "--in-place", "--memory", "1g", "-f", "nowhere.yaml")
