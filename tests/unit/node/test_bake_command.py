"""`builder bake` as a user meets it, as far as no root is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from builder.cli.group import run
from builder.errors import CapabilityError, ConfigError
from builder.node import bake, disk
from builder.node.bake import BakePlan
from builder.node.inputs import ImageInput, WeightsInput
from builder.node.weights import put
from builder.progress import NoProgress


def code(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        run([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)


@pytest.mark.usefixtures("nobody")
def test_without_root_it_says_what_is_missing_and_what_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o.img").touch()
    assert code("bake", "disk", tmp_path / "new.img", "--oci", tmp_path, "--format", "json") == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit"] == 4
    assert "needs root" in error["message"]
    assert "bake lint" in error["hint"]
    assert code("bake", "verify", tmp_path / "o.img") == 4
    assert not (tmp_path / "new.img").exists()


@pytest.mark.parametrize("command", ["verify", "hot"])
def test_a_device_is_told_from_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(disk, "need_root", lambda what: None)
    assert code("bake", command, "/dev/null") == 2
    assert "/dev/null: not a file" in capsys.readouterr().err
    assert code("bake", command, tmp_path / "o.img") == 2
    assert "o.img: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["disk", "verify", "hot"])
def test_arguments_that_end_within_a_quotation_are_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(disk, "need_root", lambda what: None)
    path = tmp_path / "o.img"
    if command != "disk":
        path.touch()
    assert code("bake", command, path, "--run", "it's") == 2
    assert '--run: "it\'s": no closing quotation' in capsys.readouterr().err


def test_with_nothing_to_bake_it_says_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "need_root", lambda what: None)
    monkeypatch.chdir(tmp_path)
    assert code("bake", "disk", "o.img") == 2
    said = capsys.readouterr().err
    assert "nothing to bake" in said
    assert "--oci PATH" in said
    assert code("bake", "disk", "o.img", "-f", "mine.yaml") == 2
    assert "mine.yaml: no such file" in capsys.readouterr().err


def test_a_console_with_no_place_is_told_before_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "need_root", lambda what: None)
    (tmp_path / "o.img").touch()
    assert code("bake", "verify", tmp_path / "o.img", "--vm", "--console", tmp_path / "no" / "c.log") == 2
    assert "no: no such folder" in capsys.readouterr().err


def test_a_known_list_starts_nothing_so_what_is_of_the_start_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("bake", "hot", tmp_path / "o.img", "--list", tmp_path / "l.json", "--out", tmp_path / "m.json") == 2
    assert "--out: with --list nothing is started" in capsys.readouterr().err


def test_a_list_with_no_place_is_told_before_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("bake", "hot", tmp_path / "o.img", "--out", tmp_path / "no" / "m.json") == 2
    assert "no: no such folder" in capsys.readouterr().err


def test_lint_fails_on_errors_and_with_strict_on_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = tmp_path / "pod.yaml"
    pod.write_text("kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: 'a/b:v1'}]}\n")
    assert code("bake", "lint", pod) == 0
    assert "Pod/p: spec.containers[0].image: warning" in capsys.readouterr().out
    assert code("bake", "lint", pod, "--strict", "--format", "json") == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["rule"], finding["path"]) == ("no-digest", str(pod))
    pod.write_text(pod.read_text().replace("a/b:v1", "a/b"))
    assert code("bake", "lint", pod) == 2
    assert code("bake", "lint", pod, "--disk", tmp_path / "nowhere.img") == 2


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({}, "nothing to bake"),
        ({"size": (1 << 30) + 512}, "expected whole GiB"),
        ({"size": 0}, "expected whole GiB"),
        ({"images": (ImageInput(Path("x")),), "out": Path("/nowhere/o.img")}, "/nowhere: no such folder"),
        ({"weights": (WeightsInput(folder=Path("/nowhere")),)}, "/nowhere: not a restored model"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_first(tmp_path: Path, plan: dict[str, object], says: str) -> None:
    whole = {"out": tmp_path / "o.img", "size": 1 << 30, **plan}
    with pytest.raises(ConfigError, match=says):
        bake.bake(BakePlan(**whole))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_marker_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a restored model"):
        put(WeightsInput(folder=tmp_path), tmp_path / "models", NoProgress())


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="free, about 1024 TiB needed"):
        disk.need_space(tmp_path, 1 << 50)
