"""The report adds up, gates on the compressed size, and hides what it must not show."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builder.cli.image import command
from builder.errors import BudgetError, IntegrityError
from builder.image.measure import report
from builder.image.owners import CAUSES, HIDDEN
from builder.image.report import ImageReport, require_budget
from builder.image.versus import alone, compare
from tests.images import Files, image, layer
from tests.secrets import SECRETS

SITE = "opt/venv/lib/python3.11/site-packages"
NOISE = random.Random(3)
BASE: Files = {"usr/bin/sh": NOISE.randbytes(40_000), "etc/old": NOISE.randbytes(9_000)}
TORCH: Files = {
    f"{SITE}/torch/lib/libtorch.so": NOISE.randbytes(150_000),
    f"{SITE}/torch/a.py": b"import this\n" * 900,
    f"{SITE}/torch/__pycache__/a.cpython-311.pyc": NOISE.randbytes(5_000),
    f"{SITE}/torch-2.13.0.dist-info/RECORD": b"torch/a.py,,\ntorch/lib/libtorch.so,,\ntorch-2.13.0.dist-info/RECORD,,\n",
}
RECORD = {
    "layer": "torch",
    "packages": {"torch": {"version": "2.13.0", "installed_bytes": 500_000, "kept_bytes": 165_000, "files": 9}},
    "dropped": [
        {"package": "torch", "cause": "headers", "bytes": 35_000, "files": 4},
        {"package": "torch", "cause": "symbols", "bytes": 300_000, "files": 1},
        {"package": "numpy", "cause": "headers", "bytes": 5, "files": 1},
    ],
}
LAST: Files = {"etc/.wh.old": b"", "opt/builder/layers/torch.json": json.dumps(RECORD).encode(), "app/x": b"y"}


def made(path: Path, *, record: Any = None, packed: str = "+gzip", **config: Any) -> Path:
    last = LAST if record is None else LAST | {"opt/builder/layers/torch.json": record}
    return image(path, BASE, TORCH, last, packed=packed, config={"config": config})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ImageReport:
    return report(made(tmp_path_factory.mktemp("i") / "i.tar", User="10001:0", Entrypoint=["p"], Labels={"l": "v"}), "r/m:1")


def test_everything_adds_up(found: ImageReport) -> None:
    for whole in (found.groups, found.causes, found.packages):
        assert sum(one.packed for one in whole) == found.packed == sum(one.packed for one in found.layers)
        assert (
            sum(one.size for one in whole)
            == found.size
            == sum(len(data) for files in (BASE, TORCH, LAST) for data in files.values())
        )
    for one in found.layers:
        assert sum(one.causes.values()) == one.packed
        assert set(one.causes) <= set(CAUSES)


def test_causes_and_packages(found: ImageReport) -> None:
    sizes = {one.cause: one.size for one in found.causes}
    assert sizes == {
        "torch": sum(map(len, TORCH.values())) - 5_000, "bytecode": 5_000, "system": 40_000, HIDDEN: 9_000,
        "builder runtime": len(json.dumps(RECORD)), "application": 1,
    }  # fmt: skip
    torch = next(one for one in found.packages if one.package == "torch")
    assert (torch.manager, torch.version, torch.size, torch.files) == ("python", "2.13.0", sum(map(len, TORCH.values())), 4)
    assert found.causes == sorted(found.causes, key=lambda one: -one.packed)


def test_what_debian_calls_lib_is_usr_lib(tmp_path: Path) -> None:
    """Debian 12 has a link lib in its root, and records that name either; a later layer may remove through the link."""
    files = {
        "usr/lib/libc.so.6": b"x" * 500,
        "usr/lib/gone": b"y" * 70,
        "var/lib/dpkg/info/libc6:amd64.list": b"/lib/libc.so.6\n",
    }
    one = report(image(tmp_path / "i", layer(files, links={"lib": "usr/lib"}), {"lib/.wh.gone": b""}), "x")
    assert {(row.package, row.cause): row.size for row in one.groups if row.size > 50} == {
        ("libc6", "system"): 500,
        ("/usr/lib", HIDDEN): 70,
    }


def test_a_hidden_file_counts_in_its_layer(found: ImageReport) -> None:
    assert HIDDEN in found.layers[0].causes
    assert 8_000 < found.layers[0].causes[HIDDEN] < 10_000
    assert [one.package for one in found.packages if one.cause == HIDDEN] == ["/etc"]


def test_the_largest_libraries(found: ImageReport) -> None:
    [one] = found.libraries
    assert (one.path.rpartition("/")[2], one.package, one.size, one.layer) == ("libtorch.so", "torch", 150_000, 1)
    assert one.packed == pytest.approx(150_000, rel=0.02)


def test_the_untouched_install(found: ImageReport) -> None:
    assert [(one.package, one.version, one.layer, one.installed, one.kept) for one in found.installed] == [
        ("torch", "2.13.0", "torch", 500_000, 165_000)
    ]
    assert [(one.cause, one.size, one.files) for one in found.left_out] == [("symbols", 300_000, 1), ("headers", 35_005, 5)]
    assert (alone(found).installed, alone(found).dropped) == ((), ())


def test_a_record_that_a_later_layer_removes_does_not_count(tmp_path: Path) -> None:
    path = image(tmp_path / "i", LAST, {"opt/builder/layers/.wh.torch.json": b""})
    assert report(path, "x").installed == ()


@pytest.mark.parametrize(
    "record", [b"{", b"[]", b"{}", b'{"packages": [], "dropped": []}', b'{"packages": {"a": 1}, "dropped": []}',
               b'{"packages": {}, "dropped": [{"bytes": "many"}]}', b"\xff"],
)  # fmt: skip
def test_a_damaged_record_is_one_error(record: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"/opt/builder/layers/torch\.json: not a record of a layer"):
        report(made(tmp_path / "i", record=record), "x")


def test_the_configuration_is_told_without_its_secrets(tmp_path: Path) -> None:
    token = SECRETS["Hugging Face token"][0].decode()
    env = ["A=b=c", "DB_PASSWORD=hunter22", "URL=https://me:" + "opensesame@h/", f"X={token}"]
    config = {"config": {"Env": env, "Labels": {"l": token}, "Entrypoint": ["p", token], "User": "10001:0"}}
    config["history"] = [{"created_by": "RUN fetch " + token}]  # type: ignore[assignment]
    one = report(image(tmp_path / "i", {f"{token}/{token}/lib.so": b"x"}, config=config), "r/m:1")
    assert (one.user, one.env["A"], one.env["DB_PASSWORD"]) == ("10001:0", "b=c", "(hidden)")
    for word in ("hunter22", "opensesame", token):
        assert word not in json.dumps(one.to_json())


def test_layers_that_lie_there_uncompressed_are_estimated_and_said_to_be(tmp_path: Path) -> None:
    exact, about = report(made(tmp_path / "i"), "x"), report(made(tmp_path / "j", packed=""), "x")
    assert (exact.estimated, about.estimated) == (False, True)
    assert about.packed == pytest.approx(exact.packed, rel=0.05)


def test_a_budget_is_a_limit_on_compressed_bytes(found: ImageReport) -> None:
    require_budget(found, found.packed)
    with pytest.raises(BudgetError) as caught:
        require_budget(found, found.packed - 1)
    assert caught.value.exit_code == 6
    assert f"{found.packed:,} bytes" in caught.value.message
    lines = [line.strip() for line in caught.value.message.splitlines()]
    assert lines[1].startswith(found.causes[0].cause + ": ")
    assert "torch" in lines[-1]
    assert caught.value.where["causes"] == {one.cause: one.packed for one in found.causes}


def test_a_budget_is_not_one_on_unpacked_bytes(tmp_path: Path) -> None:
    one = report(image(tmp_path / "i", {"a": bytes(5_000_000)}), "x")
    require_budget(one, 1_000_000)


def test_two_images_are_compared_by_package(found: ImageReport) -> None:
    without = replace(found, reference="old", groups=tuple(one for one in found.groups if one.package != "torch"))
    compared = compare(without, found)
    [row] = compared.rows
    assert (row.package, row.before) == ("torch", 0)
    assert row.after == sum(one.packed for one in found.groups if one.package == "torch")
    assert compare(found, found).rows == ()
    assert compare(found, without).rows[0].signed.startswith("-")


def run(*args: str) -> Any:
    return CliRunner().invoke(command, ["report", *args, "-q"])


def test_the_command_prints_it_as_text_and_as_json(tmp_path: Path) -> None:
    path = made(tmp_path / "i.tar")
    text = run(str(path), "--top", "2")
    assert text.exit_code == 0, text.output
    for word in ("torch 2.13.0", "libtorch.so", "hidden by a later layer", "left out", "COPY step1 /", "symbols"):
        assert word in text.stdout, word
    told = json.loads(run(str(path), "--format", "json").stdout)
    assert told["packed"] == sum(one["packed"] for one in told["groups"])
    assert [one["digest"][:7] for one in told["layers"]] == ["sha256:"] * 3
    assert "against" not in told


def test_the_command_compares(tmp_path: Path) -> None:
    path, other = made(tmp_path / "i.tar"), image(tmp_path / "j.tar", BASE)
    told = json.loads(run(str(path), "--against", str(other), "--format", "json").stdout)
    assert told["against"]["packages"][0]["package"] == "torch"
    assert told["installed"]
    assert json.loads(run(str(path), "--against", "none", "--format", "json").stdout)["installed"] == []


def test_the_command_gates(tmp_path: Path) -> None:
    path = made(tmp_path / "i.tar")
    assert run(str(path), "--budget", "1GiB").exit_code == 0
    over = run(str(path), "--budget", "1kB", "--format", "json")
    assert isinstance(over.exception, BudgetError)
    told = json.loads(over.stdout)
    assert told["error"]["exit"] == 6
    assert told["packed"] > 1000
    assert "--budget: 'much' is not a size" in str(run(str(path), "--budget", "much").exception)


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    assert run(str(made(tmp_path / "i.tar")), "--html", str(tmp_path / "p.html")).exit_code == 0
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("jit", ["on", "off"])
def test_what_only_a_compiler_reads_is_left_out_or_kept_by_what_the_label_says(jit: str, tmp_path: Path) -> None:
    record = {
        "layer": "engine",
        "packages": {"mine": {"version": "1", "installed_bytes": 100, "kept_bytes": 60, "files": 1}},
        "dropped": [{"package": "mine", "cause": "tests", "bytes": 10, "files": 1}],
        "toolkit": [{"package": "mine", "cause": "headers", "bytes": 30, "files": 2}],
    }
    body = {"opt/builder/layers/engine.json": json.dumps(record).encode()}
    path = image(tmp_path / "i.tar", body, config={"config": {"Labels": {"builder.jit": jit}}})
    found = report(path, "i")
    assert {row.cause: row.size for row in found.dropped} == {"tests": 10} | ({} if jit == "on" else {"headers": 30})
    assert [row.kept for row in found.installed] == [90 if jit == "on" else 60]
