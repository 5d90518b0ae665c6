"""`builder bake lint` as a user meets it: where and why, silencing, standard input, SARIF, exit codes, our own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from builder.cli.bake.lint import command
from builder.errors import ConfigError
from builder.node.lint import lint
from tests.unit.node.test_lint import BAD, HERE

RAID0 = HERE / "bad" / "raid0.yaml"
GOLDEN = Path(__file__).parents[2] / "golden" / "node"


def invoke(*words: str | Path, input: bytes | None = None) -> str:
    return (
        CliRunner().invoke(command, [str(w) for w in words], input=input, catch_exceptions=False, standalone_mode=False).stdout
    )


def fails(*words: str | Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        invoke(*words)
    return caught.value


@pytest.mark.parametrize("folder", sorted(path for path in GOLDEN.iterdir() if path.is_dir()), ids=lambda p: p.name)
def test_our_own_files_have_no_findings(folder: Path) -> None:
    """All of a target together, with the record: the pool is judged by its class, the taint by its gate."""
    out = json.loads(invoke(folder, "--disk", folder / "data.img.json", "--strict", "--format", "json"))
    assert out["findings"] == []
    assert out["files"]
    assert out["understood"] >= (5 if folder.name in ("bottlerocket", "al2023-volume") else 0)


def test_a_finding_says_where_why_and_what_to_do(tmp_path: Path) -> None:
    error = fails(RAID0)
    assert (error.exit_code, error.message) == (2, "1 finding would cost the cache")
    shown = CliRunner().invoke(command, [str(RAID0)]).stdout.splitlines()
    assert shown[0].startswith(f"{RAID0}:14:3: EC2NodeClass/gpu: spec.instanceStorePolicy: error: instanceStorePolicy RAID0")
    assert shown[0].endswith("[raid0]")
    assert [line.split()[0] for line in shown[1:]] == ["why", "fix"]


def test_json_is_one_object_with_the_error() -> None:
    shown = json.loads(CliRunner().invoke(command, [str(RAID0), "--format", "json"]).stdout)
    assert (shown["files"], shown["understood"], shown["error"]["exit"]) == ([str(RAID0)], 1, 2)
    (finding,) = shown["findings"]
    assert {**finding, "message": "", "why": "", "fix": ""} == {
        "path": str(RAID0), "line": 14, "column": 3, "where": "EC2NodeClass/gpu: spec.instanceStorePolicy", "rule": "raid0",
        "severity": "error", "message": "", "why": "", "fix": "",
    }  # fmt: skip


def test_warnings_fail_only_when_asked(tmp_path: Path) -> None:
    warned = HERE / "bad" / "ami-latest.yaml"
    assert "[ami-latest]" in invoke(warned)
    assert fails(warned, "--strict").exit_code == 2


@pytest.mark.parametrize("rule", ["kms", "encrypted"])
def test_rules_are_left_out_by_their_names_old_and_new(rule: str) -> None:
    assert invoke(HERE / "bad" / "kms.yaml", "--strict", "--ignore", rule) == "nothing found in 1 file\n"
    assert "no such rule" in fails(RAID0, "--ignore", "raid1").message


@pytest.mark.parametrize("path", [p for p in BAD if p.suffix != ".mime" and "unreadable" not in p.name], ids=lambda p: p.name)
@pytest.mark.parametrize("place", ["on the line", "above it"])
def test_a_comment_silences_a_rule_where_it_stands(path: Path, place: str, tmp_path: Path) -> None:
    """Every mark of the bad files becomes such a comment."""
    lines = []
    for line in path.read_text().splitlines():
        code, mark, said = line.partition("  # finds ")
        rules = ",".join(one.split()[0] for one in said.split(", ")) if mark else ""
        comment = f"# builder lint ignore={rules}"
        lines += (
            [line]
            if not mark
            else [f"{code}  {comment}"]
            if place == "on the line"
            else [" " * (len(code) - len(code.lstrip())) + comment, code]
        )
    (tmp_path / path.name).write_text("\n".join(lines))
    assert "ignore=" in (tmp_path / path.name).read_text()
    disk = ["--disk", HERE / "disk.img.json"] if ".disk." in path.name else []
    assert json.loads(invoke(tmp_path / path.name, *disk, "--format", "json"))["findings"] == []


def test_a_comment_silences_nothing_else(tmp_path: Path) -> None:
    text = RAID0.read_text().replace("# finds raid0 error", "# builder lint ignore=kms")
    (tmp_path / "a.yaml").write_text("# builder lint ignore=raid0\n" + text)
    assert [f.rule for f in lint([tmp_path])] == ["raid0"]


def test_standard_input(tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["-"], input=RAID0.read_bytes())
    assert run.stdout.startswith("-:14:3: EC2NodeClass/gpu")
    assert invoke("-", input=b"") == "nothing checked: no node, pod or user data in 1 file\n"
    assert "larger than" in CliRunner().invoke(command, ["-"], input=b"#" * (9 << 20)).stdout


def test_nothing_checked_is_not_called_clean(tmp_path: Path) -> None:
    (tmp_path / "ci.yaml").write_text("on: push\njobs: {}\n")
    assert invoke(tmp_path) == "nothing checked: no node, pod or user data in 1 file\n"
    assert invoke(HERE / "good" / "raid0.yaml", tmp_path) == "nothing found in 2 files\n"


def test_sarif_has_line_and_column(tmp_path: Path) -> None:
    fails(RAID0, "--sarif", tmp_path / "s.json")
    (written,) = json.loads((tmp_path / "s.json").read_text())["runs"]
    (result,) = written["results"]
    assert written["tool"]["driver"]["name"] == "builder bake lint"
    assert written["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "raid0"
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": str(RAID0)}, "region": {"startLine": 14, "startColumn": 3}}


def test_sarif_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert "cannot be written" in fails(RAID0, "--sarif", tmp_path / "no" / "s.json").message


def test_what_a_file_says_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('kind: Pod\nmetadata: {name: "\\e[2J"}\nspec: {containers: [{image: "a:\\e[31m"}]}\n')
    assert "\x1b" not in invoke(tmp_path)


def test_a_file_named_twice_is_judged_once() -> None:
    assert len(lint([RAID0, RAID0, RAID0.parent / "raid0.yaml"])) == 1
