"""The prune step as a build runs it, on made libraries: what it changes, counts, writes down, and what ends a build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder import resources
from builder.image import context, gpucode
from builder.image import trim as rules
from builder.image.dockerfile import EPOCH
from builder.slim import stub
from tests import fatbins
from tests.unit.test_shipped import copied

STEPS = resources.folder("templates") / "image" / "steps"
FREE, CLOSED = "License-Expression: MIT", "License: NVIDIA Proprietary Software"


class Stage:
    """A build stage below a folder: a virtual environment with packages, the steps, builder/slim, and a cuobjdump.

    Only the paths in the steps differ from those of a build.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        self.venv = root / "opt/venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        self.site = next(self.venv.glob("lib/*/site-packages"))
        self.listed = [str(path) for path in self.venv.rglob("*") if path.is_symlink() or not path.is_dir()]
        (root / "venv.list").write_text("\n".join(self.listed))
        copied(context.SLIM, root / "slim")
        for name in ("trim.py", "prune.py"):
            text = (STEPS / name).read_text()
            for old, new in (
                ("/opt/venv.list", root / "venv.list"), ("/opt/venv", self.venv), ("/out", self.out),
                ("/run/slim", root / "slim"), ("/run/proof/cuobjdump", root / "cuobjdump"),
            ):  # fmt: skip
                text = text.replace(f'"{old}"', f'"{new}"')
            (root / name).write_text(text)
        (root / "trim.json").write_text(json.dumps(rules.settings(EPOCH)))
        self.cuobjdump('exec python3 -c "$LISTER" "$@"')
        self.settings()

    def settings(self, **changes: Any) -> None:
        usual = {"gpus": ["9.0"], "profile": "oss", "stubs": []}
        (self.root / "prune.json").write_text(json.dumps(usual | changes))

    def cuobjdump(self, script: str) -> None:
        """A program in the place of NVIDIA's; the real one reads real wheels in tests/integration."""
        (self.root / "cuobjdump").write_text(f"#!/bin/sh\n{script}\n")
        (self.root / "cuobjdump").chmod(0o755)

    def install(self, name: str, licence: str, *files: str, chips: tuple[str, ...] = ("sm_80", "sm_90", "sm_100")) -> None:
        folder = self.site / name
        folder.mkdir()
        for file in files:
            entries = [(chip, fatbins.cubin(chip, 60_000)) for chip in chips]
            fatbins.make(folder, file, [entries, entries])
            folder.joinpath(file).with_suffix(".c").unlink(missing_ok=True)
        info = self.site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{licence}\n\ntext\n")
        rows = [f"{name}/{path.name},,\n" for path in folder.iterdir()]
        (info / "RECORD").write_text("".join([*rows, f"{info.name}/METADATA,,\n", f"{info.name}/RECORD,,\n"]))

    def run(self) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"LISTER": LISTER, "PYTHONPATH": ""}
        command = [self.venv / "bin/python", self.root / "trim.py", "one", "1"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=self.root)

    def layer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "1/opt/builder/layers/one.json").read_text())
        return found

    def record(self) -> gpucode.GpuCode | None:
        folder = self.out / "slim/opt/builder/slim"
        return gpucode.read([(str(path), path.read_bytes()) for path in sorted(folder.iterdir())])

    def kept(self, name: str) -> Path:
        return next((self.out / "1").rglob(name))


# Lists what the pruned file holds, by the project's own reader: the step is under test here, not the two readers.
LISTER = """
import os, sys
sys.path.insert(0, os.path.abspath("slim"))
from builder.slim import elf, fatbin
option, path = sys.argv[-2:]
source = elf.Source(os.open(path, os.O_RDONLY))
kind = {"--list-elf": "cubin", "--list-ptx": "ptx"}[option]
codes = [e.code for c in fatbin.containers(source, elf.read(source).sections) for e in c.entries if e.code.kind == kind]
for number, code in enumerate(codes):
    print(f"{'ELF' if kind == 'cubin' else 'PTX'} file    {number}: x.{number}.{code}.{kind}")
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_what_no_chip_can_use_goes_and_every_byte_is_counted(stage: Stage) -> None:
    stage.install("free", FREE, "a.so", "twin.so")
    before = (stage.site / "free/a.so").stat().st_size
    done = stage.run()
    assert done.returncode == 0, done.stderr
    found = stage.record()
    assert found
    assert (found.gpus, found.profile) == (("9.0",), "oss")
    [one] = found.libraries  # twins are one file by now
    assert (one.name, one.package, one.status, list(one.after)) == ("a.so", "free", "pruned", ["sm_90"])
    kept = stage.kept("a.so")
    assert kept.stat().st_ino == stage.kept("twin.so").stat().st_ino
    assert kept.stat().st_size < before - 200_000
    mine = fatbins.container([("sm_90", fatbins.cubin("sm_90", 60_000))])
    assert all(body == mine for body in fatbins.pointers(kept))
    layer = stage.layer()
    gone = {one["cause"]: (one["bytes"], one["files"]) for one in layer["dropped"]}
    assert gone["GPU code for other chips"] == (one.size_before - one.size_after, 1)
    entry = layer["packages"]["free"]
    assert entry["installed_bytes"] == entry["kept_bytes"] + sum(size for size, _ in gone.values())
    left = {path.lstat().st_ino: path.lstat().st_size for path in (stage.out / "1/opt/venv").rglob("*") if path.is_file()}
    left |= {path.lstat().st_ino: path.lstat().st_size for path in (stage.out / "1").rglob("site-packages/*/*")}
    assert sum(left.values()) == entry["kept_bytes"]
    assert {path.stat().st_mtime for path in stage.out.rglob("*")} == {EPOCH}


def test_nothing_of_it_is_in_a_layer_that_the_licence_leaves_alone(stage: Stage, tmp_path: Path) -> None:
    """Such a layer is the same, byte for byte, in images for any chips and in images that name none."""
    stage.install("closed", CLOSED, "a.so")
    assert stage.run().returncode == 0
    found = stage.record()
    assert found
    assert [(one.status, one.before == one.after, bool(one.reason)) for one in found.libraries] == [("licence", True, True)]
    layer = {str(p.relative_to(stage.out)): p.read_bytes() for p in (stage.out / "1").rglob("*") if p.is_file()}
    plain = Stage(tmp_path / "plain")
    (plain.root / "prune.py").unlink()
    plain.install("closed", CLOSED, "a.so")
    assert plain.run().returncode == 0
    again = {str(p.relative_to(plain.out)): p.read_bytes() for p in (plain.out / "1").rglob("*") if p.is_file()}
    assert {name.partition("site-packages/")[2] or name: body for name, body in again.items()} == {
        name.partition("site-packages/")[2] or name: body for name, body in layer.items()
    }


def test_profile_all_changes_what_the_licence_forbids_to_change(stage: Stage) -> None:
    stage.settings(profile="all")
    stage.install("closed", CLOSED, "a.so")
    assert stage.run().returncode == 0
    found = stage.record()
    assert found
    assert [(one.status, list(one.after)) for one in found.libraries] == [("pruned", ["sm_90"])]


def test_a_layer_without_gpu_code_tells_nothing(stage: Stage) -> None:
    stage.install("free", FREE)
    assert stage.run().returncode == 0
    assert stage.record() is None
    assert (stage.out / "slim/opt/builder/slim").is_dir()  # for a COPY


def test_a_library_without_code_for_the_chips_stays_whole_and_the_record_says_why(stage: Stage) -> None:
    stage.install("free", FREE, "only.so", chips=("sm_100",))
    body = (stage.site / "free/only.so").read_bytes()
    assert stage.run().returncode == 0
    found = stage.record()
    assert found
    [one] = found.libraries
    assert (one.status, one.runs_on, one.after == one.before) == ("left", (), True)
    assert "9.0" in one.reason
    assert found.runs_on == {"9.0": ("only.so",)}
    assert len(stage.kept("only.so").read_bytes()) <= len(body)


def test_a_library_that_is_not_understood_is_in_the_record_and_in_the_log(stage: Stage) -> None:
    stage.install("free", FREE, "odd.so", "good.so")
    path = stage.site / "free/odd.so"
    body = bytearray(path.read_bytes())
    body[body.index(fatbins.MAGIC.to_bytes(4, "little")) + 4] = 9  # the container's version
    path.write_bytes(body)
    other = Path(shutil.copy(path, stage.site / "free/other.bin"))
    with other.open("r+b") as file:
        file.seek(18)
        file.write(b"\xf3\x00")  # RISC-V: nothing that this image runs
    done = stage.run()
    assert done.returncode == 0, done.stderr
    found = stage.record()
    assert found
    assert [one.name for one in found.coded] == ["good.so"]
    assert [(x.name, x.error) for x in found.unread] == [("odd.so", "version")]
    [one] = found.unread
    assert (one.name, one.status, one.package) == ("odd.so", "left", "free")
    assert one.error in ("container", "version")
    assert "version" in one.reason
    assert done.stderr == f"prune: {path}: left as it was: {one.reason}\n"


def test_what_could_not_be_proven_is_in_the_record(stage: Stage) -> None:
    stage.cuobjdump('case "$*" in *--version) ;; *) echo "Invalid ELF" >&2; exit 1 ;; esac')
    stage.install("free", FREE, "a.so")
    assert stage.run().returncode == 0
    found = stage.record()
    assert found
    assert found.notes == {"cuobjdump cannot read it, nor the original: exit code 1: Invalid ELF": ["a.so"]}


def test_a_log_names_few_and_counts_the_rest(stage: Stage) -> None:
    stage.install("free", FREE, "only.so", chips=("sm_100",))
    body = bytearray((stage.site / "free/only.so").read_bytes())
    at = body.index(fatbins.cubin("sm_100", 60_000)) + 50_000
    for number in range(21):
        body[at] = number  # else they become one file
        (stage.site / f"free/{number}.so").write_bytes(body)
    done = stage.run()
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "prune: 2 more are in the record"


@pytest.mark.parametrize(
    ("lister", "message"),
    [
        ("echo 'ELF file    1: x.1.sm_90.cubin'", "cuobjdump --list-elf lists 1 of sm_90; expected 2"),
        ("echo cuobjdump fatal: no; exit 3", "exit code 3"),
    ],
)
def test_a_proof_that_fails_ends_the_build_with_the_reason(stage: Stage, lister: str, message: str) -> None:
    # It reads the original without complaint, and only the pruned file badly.
    stage.cuobjdump(f'case "$*" in *.slim-*) {lister} ;; *) exec python3 -c "$LISTER" "$@" ;; esac')
    stage.install("free", FREE, "a.so")
    done = stage.run()
    assert done.returncode == 1
    assert done.stderr.startswith("prune: ")
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (stage.out / "1").exists()


def test_a_stub_takes_a_librarys_place_and_the_bytes_are_counted(stage: Stage) -> None:
    stage.settings(gpus=[], stubs=["curand"])
    stage.install("nvidia-curand", CLOSED, "libcurand.so.10", "libother.so.10")
    other = (stage.site / "nvidia-curand/libother.so.10").stat().st_size
    done = stage.run()
    assert done.returncode == 0, done.stderr
    found = stage.record()
    assert found
    assert [(one.name, one.stub, one.package) for one in found.stubs] == [("libcurand.so.10", "curand", "nvidia-curand")]
    assert found.libraries == ()
    made = stage.kept("libcurand.so.10")
    assert stub.is_stub(made)
    assert stage.kept("libother.so.10").stat().st_size == other
    [gone] = [one for one in stage.layer()["dropped"] if one["cause"] == "libraries with a stub in their place"]
    assert gone["bytes"] == found.stubs[0].before - made.stat().st_size


def test_a_file_that_cannot_be_stubbed_ends_the_build_with_the_reason(stage: Stage) -> None:
    stage.settings(stubs=["curand"])
    stage.install("nvidia-curand", CLOSED, "libcurand.so.10")
    (stage.site / "nvidia-curand/libcurand.so.10").write_bytes(b"not a library")
    done = stage.run()
    assert done.returncode == 1
    assert done.stderr.startswith("prune: ")
    assert "libcurand.so.10" in done.stderr
    assert "Traceback" not in done.stderr
