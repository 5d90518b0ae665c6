"""Files that are not what they should be: one finding each, with its line; never an exception, never a hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import ConfigError
from builder.node.lint import Disk, files, lint, open_disk, run
from tests.unit.node.test_lint import BAD, HERE

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)
)
POD = "kind: Pod\nspec:\n  containers:\n    - {name: a, image: 'a:v1'}\n"


def one(tmp_path: Path, body: str | bytes, *, name: str = "a.yaml") -> tuple[int, str]:
    """The only finding: line and message."""
    path = tmp_path / name
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    (finding,) = lint([path])
    assert (finding.rule, finding.path) == ("unreadable", path)
    return finding.line, finding.message


@pytest.mark.parametrize(
    ("name", "body", "line", "said"),
    [
        ("a.yaml", "a: 1\nb: [", 3, "not YAML"),
        ("a.yaml", "a: 1\n\tb: 2", 2, "not YAML"),
        ("a.yaml", "a: *nothing", 1, "undefined alias"),
        ("a.yaml", b"kind: Pod\nname: \xff\xfe", 2, "byte 16 is not UTF-8"),
        ("a.yaml", bytes(range(256)), 2, "byte 128 is not UTF-8"),
        ("a.yaml", "a: \x00", 1, "not YAML"),
        ("a.yaml", BOMB, 1, "aliases that stand for more than 200000 values"),
        ("a.yaml", "a: &a [*a]", 1, "more than 200 levels deep"),
        ("a.yaml", "a: &a {b: *a}", 1, "more than 200 levels deep"),
        ("a.yaml", "[" * 200_000, 1, "nested too deeply"),
        ("a.yaml", "a: " + "[" * 200_000, 1, "levels deep"),
        ("a.yaml", "- " * 200_000, 1, "begins after column"),
        ("a.yaml", "? " * 200_000, 1, "begins after column"),
        ("a.yaml", "".join(" " * n + "a:\n" for n in range(900)), 202, "more than 200 levels deep"),
        ("a.yaml", "kind: Pod\nkind: List\n", 2, "'kind' occurs twice"),
        ("a.toml", "a = 1\n[settings\n", 2, "not TOML"),
        ("a.toml", "a = 1\na = 2", 2, "not TOML"),
        ("a.toml", "a = " + "[" * 100_000, 1, "nested too deeply"),
        ("a.json", "{\n'a': 1}", 2, "not JSON"),
        ("a.json", "[" * 200_000, 1, "nested too deeply"),
        ("a.json", '{"a": 1, "a": 2}', 1, "'a' occurs twice"),
    ],
)  # fmt: skip
def test_each_is_one_finding(tmp_path: Path, name: str, body: str | bytes, line: int, said: str) -> None:
    found, message = one(tmp_path, body, name=name)
    assert said in message
    assert found == line


@pytest.mark.parametrize(
    "body",
    ["", "\n", "---\n---\n", "null", "1", "[]", "a: !!python/object/apply:os.system [id]", "!!set {a, b}", "? [a, b]\n: c",
     "kind: Pod", "kind: Pod\nspec: 3", "kind: [a]\nspec: {}", "spec: {template: []}", "items: [1, [], null]",
     "kind: Pod\nspec: {containers: {a: 1}, initContainers: [1, null, [2]]}",
     "kind: EC2NodeClass\napiVersion: karpenter.k8s.aws/v1",
     "kind: EC2NodeClass\napiVersion: karpenter.k8s.aws/v1\nspec: {blockDeviceMappings: [1, {ebs: 2}], amiSelectorTerms: 3}",
     "kind: NodePool\napiVersion: karpenter.sh/v1\nspec: {template: {spec: {requirements: [1, {values: 2}]}}}",
     "a: 0b_\nb: 0x\nc: 190:20:30\nd: .inf\ne: 1" + "0" * 5000, "a: !!int abc", "a: !!float .", "\ufeffa: 1", "a: \U0001f600"],
)  # fmt: skip
def test_odd_documents_have_no_findings(tmp_path: Path, body: str) -> None:
    (tmp_path / "a.yaml").write_text(body)
    assert [f for f in lint([tmp_path]) if f.rule not in ("mixed-arch", "consolidation")] == []


def test_json_may_be_indented_with_tabs_and_hold_any_letter(tmp_path: Path) -> None:
    pod = {"kind": "Pod", "spec": {"containers": [{"name": "\U0001f600\x7f", "image": "a:v1"}]}}
    (tmp_path / "a.json").write_text(json.dumps(pod, indent="\t"))
    assert [(f.rule, f.line) for f in lint([tmp_path])] == [("no-digest", 7)]
    (tmp_path / "a.json").write_text(json.dumps(pod).replace("\\ude00", ""))
    assert [(f.rule, f.line) for f in lint([tmp_path])] == [("no-digest", 1)]


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert "larger than" in one(tmp_path, "#" * 101)[1]


def test_a_file_that_goes_away_or_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(POD)
    monkeypatch.setattr(files, "find", lambda paths: [(tmp_path / "gone.yaml", True), (tmp_path / "a.yaml", True)])
    first, second = lint([tmp_path])
    assert (first.rule, first.message) == ("unreadable", "cannot be read: No such file or directory")
    assert second.rule == "no-digest"


def test_folders_that_lead_back_and_links_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.yaml").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "self.yaml").symlink_to(tmp_path / "a" / "self.yaml")
    os.mkfifo(tmp_path / "a" / "pipe.yaml")
    (tmp_path / "a" / "x.yaml").write_text(POD)
    assert [f.path for f in lint([tmp_path, tmp_path / "a"])] == [tmp_path / "a" / "x.yaml"]


def test_a_folder_is_searched_for_files_of_configuration_only(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "c.md", "d.yaml.j2", ".git/e.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(POD)
    (tmp_path / "tsconfig.json").write_text("{ // comment\n}")
    (tmp_path / "big.json").write_bytes(b"[" + b"1," * (1 << 20) + b"1]")
    report = run([tmp_path])
    assert {f.path.name for f in report.findings} == {"a.yaml", "b.yml"}


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        lint([tmp_path / "nowhere"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a file"):
        lint([tmp_path / "pipe"])


@pytest.mark.parametrize(
    ("body", "said"),
    [("{", "cannot be read as the record"), ("[]", "no `volume`"), ('{"volume": 1}', "no `volume`"),
     ("[" * 100_000, "cannot be read")],
)  # fmt: skip
def test_a_record_that_is_none(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "d.img").touch()
    (tmp_path / "d.img.json").write_text(body)
    for path in ("d.img", "d.img.json"):
        with pytest.raises(ConfigError, match=said):
            open_disk(tmp_path / path)


def test_a_disk_without_a_record_has_a_size_only(tmp_path: Path) -> None:
    with (tmp_path / "d.img").open("wb") as file:
        file.truncate(5 << 30)
    assert open_disk(tmp_path / "d.img") == Disk(5 << 30)
    with pytest.raises(ConfigError, match="no such file"):
        open_disk(tmp_path / "e.img")


def test_a_record_of_odd_values_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    volume = {
        "size": "x",
        "images": [1, {"reference": None}, {"reference": "a:b", "platform": 3}],
        "used": None,
        "target": None,
    }
    (tmp_path / "d.img.json").write_text(json.dumps({"volume": volume}))
    disk = open_disk(tmp_path / "d.img.json")
    assert (disk.size_bytes, disk.used, [str(image) for image in disk.images]) == (0, None, ["docker.io/library/a:b"])


TEXTS = [path.read_text() for path in BAD]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damaged_file_raises(tmp_path: Path, data: st.DataObject) -> None:
    """Lines of real files cut, doubled, moved and changed."""
    lines = data.draw(st.sampled_from(TEXTS)).splitlines()
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(
            st.sampled_from(["", lines[at][: len(lines[at]) // 2], lines[at] * 2, "  " + lines[at],
                             lines[at].replace(":", ": ["),
                             lines[at].partition(":")[0] + ": 3", lines[at].partition(":")[0] + ": {a: [null]}", lines[at - 1],
                             lines[at].replace('"', "")])
        )  # fmt: skip
    path = tmp_path / data.draw(st.sampled_from(["a.yaml", "a.toml", "a.json", "user-data"]))
    path.write_text("\n".join(lines))
    count = len(lines)
    for finding in lint([path], disk=open_disk(HERE / "disk.img.json")):
        assert 1 <= finding.line <= count + 1, str(finding)
        assert str(finding)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet="-:[]{}&*!|>'\"#%@, \n\tab0=", max_size=80).map(str.encode))
def test_no_bytes_raise(tmp_path: Path, body: bytes) -> None:
    for name in ("a.yaml", "a.toml", "a.json", "a"):
        (tmp_path / name).write_bytes(body)
        assert len(lint([tmp_path / name])) < 100


def test_a_bomb_costs_little(tmp_path: Path) -> None:
    """In a process of its own with 300 MB: a bomb that was written out would end it."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    code = (
        "import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20));"
        "from builder.node.lint import lint; print(len(lint([pathlib.Path(sys.argv[1])])))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_it_runs_in_a_thread_with_a_small_stack(tmp_path: Path) -> None:
    """What nests as deeply as is let through does not overflow the parser's C stack."""
    (tmp_path / "a.yaml").write_text("[" * 990 + "]" * 990 + "\n" + "- " * 480 + "a\n")
    found: list[int] = []
    before = threading.stack_size(2 << 20)
    try:
        thread = threading.Thread(target=lambda: found.append(len(lint([tmp_path]))))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [1]
