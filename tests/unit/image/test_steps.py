"""The programs that run inside a build, as far as they run outside one: on real wheels, libraries and bytecode."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from builder import resources
from builder.image import trim as rules
from builder.image.dockerfile import EPOCH

STEPS = resources.folder("templates") / "image" / "steps"
METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{more}\nThe text.\n"
Tree = Callable[..., Path]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STEPS / f"{name}.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def trim(tmp_path: Path) -> ModuleType:
    """The step, for an environment below tmp_path."""
    found = module("trim")
    found.VENV, found.OUT = tmp_path / "opt/venv", tmp_path / "out"
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree(package, {path: content}, metadata="")`: a package installed in site-packages, with its RECORD."""
    site = tmp_path / "opt/venv/lib/python3.11/site-packages"

    def install(name: str, files: dict[str, bytes], more: str = "") -> Path:
        info = f"{name.replace('-', '_')}-1.dist-info"
        contents = files | {f"{info}/METADATA": METADATA.format(name=name, more=more).encode()}
        for path, body in contents.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(body)
        (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"]))
        return site

    return install


def run(trim: ModuleType, site: Path, parts: int = 1, with_rules: tuple[rules.Rule, ...] = rules.RULES) -> dict[str, Any]:
    """sort_out, strip, link, split; the report."""
    files = trim.Files(trim.VENV, site, trim.walk(trim.VENV))
    trim.sort_out(files, [rule.to_json() for rule in with_rules])
    trim.strip(files)
    trim.link_duplicates(files)
    trim.split(files, parts)
    report: dict[str, Any] = files.report("layer")
    return report


def names(folder: Path) -> set[str]:
    """Files below site-packages of one part, wherever the temporary folder puts it."""
    return {str(p).partition("site-packages/")[2] for p in folder.rglob("*") if not p.is_dir() and "dist-info" not in str(p)}


def library(path: Path, *flags: str) -> bytes:
    """A real shared object, with debug information."""
    path.with_suffix(".c").write_text(
        "int answer(void) { return 42; }\nstatic int hidden(void) { return 7; }\nint (*f)(void) = hidden;"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-g", *flags, "-o", path, path.with_suffix(".c")], check=True)
    return path.read_bytes()


def test_each_rule_takes_what_it_names_and_nothing_beside(trim: ModuleType, tree: Tree) -> None:
    doomed = {
        "a/tests/t.py": "tests",
        "a/__pycache__/m.cpython-311.pyc": "bytecode",
        "a/lib.a": "static archives",
        "a/m.pyi": "interfaces",
        "nvidia/cu13/lib/libcusolverMg.so.12": "unlinked libraries",
        "nvidia/cu13/lib/libnvrtc.alt.so.13": "unlinked libraries",
        "nvidia/nvshmem/lib/nvshmem_bootstrap_mpi.so.3": "plugins that cannot load",
        "triton/backends/amd/lib/x.bc": "AMD",
        "torch/bin/protoc-3.13.0": "build files",
        "triton/backends/nvidia/bin/nvdisasm": "disassemblers",
        "triton/backends/nvidia/lib/cupti/libcupti.so": "profilers",
    }
    aside = {
        "torch/include/ATen/a.h": "headers",
        "nvidia/cu13/include/cuda.h": "headers",
        "nvidia/cu13/bin/nvcc": "compilers",
        "triton/backends/nvidia/bin/ptxas-blackwell": "compilers",
    }
    kept = {
        "a/m.py", "a/testing/keep.py", "a/tests.py", "a/latest/x.py", "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/nvshmem/lib/nvshmem_bootstrap_uid.so.3", "triton/backends/amd/driver.py",
        "torch/bin/torch_shm_manager", "torch/lib/include_me.so.txt",
    }  # fmt: skip
    site = tree("a", {name: name.encode() for name in (*doomed, *aside, *kept)})
    report = run(trim, site)
    assert names(trim.OUT / "1") == kept
    assert names(trim.OUT / "toolkit") == set(aside)
    for found, wanted in ((report["dropped"], doomed), (report["toolkit"], aside)):
        by_cause = {entry["cause"]: (entry["bytes"], entry["files"]) for entry in found}
        for cause in set(wanted.values()):
            mine = [name for name, why in wanted.items() if why == cause]
            assert by_cause[cause] == (sum(map(len, mine)), len(mine)), cause


def test_a_linker_finds_the_wheels_libraries_by_their_plain_names(trim: ModuleType, tree: Tree) -> None:
    names = ("nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcublas.so.13", "nvidia/cudnn/lib/libcudnn.so.9")
    site = tree("nvidia-cuda-runtime", dict.fromkeys(names, b"x"))
    run(trim, site)
    trim.for_linkers(site)
    aside = trim.OUT / "toolkit" / site.relative_to("/") / "nvidia/cu13"
    assert {path.name: str(path.readlink()) for path in (aside / "lib").iterdir()} == {
        "libcudart.so": "libcudart.so.13",
        "libcublas.so": "libcublas.so.13",
    }
    assert str((aside / "lib64").readlink()) == "lib"
    assert not list((trim.OUT / "1").rglob("libcudart.so"))  # the layer that all images share has none of it


def test_the_report_adds_up(trim: ModuleType, tree: Tree, tmp_path: Path) -> None:
    tree("one", {"one/a.so": library(tmp_path / "a.so"), "one/b.py": b"x" * 999, "one/tests/t.py": b"y" * 50})
    site = tree("two", {"two/same.bin": b"z" * 9000, "two/again.bin": b"z" * 9000, "nvidia/cu13/include/x.h": b"h" * 77})
    report = run(trim, site)
    for name, entry in report["packages"].items():
        gone = sum(one["bytes"] for one in report["dropped"] + report["toolkit"] if one["package"] == name)
        assert entry["installed_bytes"] == entry["kept_bytes"] + gone
    assert {one["cause"] for one in report["dropped"]} == {"tests", "symbols", "duplicates"}
    left = {path.lstat().st_ino: path.lstat().st_size for path in (trim.OUT / "1").rglob("*") if path.is_file()}
    assert sum(left.values()) == sum(entry["kept_bytes"] for entry in report["packages"].values())


@pytest.mark.parametrize(
    ("name", "more", "closed"),
    [
        ("free", "License-Expression: BSD-3-Clause\nAuthor: NVIDIA", False),
        ("nvidia-thing", "License: MIT", True),
        ("cuda-python", "License: NVIDIA Software License", True),
        ("theirs", "Classifier: License :: Other/Proprietary License", True),
        ("text", "License: MIT\n\nLicense: Proprietary, says the text", False),
    ],
)
def test_a_licence_that_forbids_it_keeps_a_library_as_it_is(
    name: str, more: str, closed: bool, trim: ModuleType, tree: Tree, tmp_path: Path
) -> None:
    body = library(tmp_path / "a.so")
    site = tree(name, {"p/a.so": body}, more)
    run(trim, site)
    found = next((trim.OUT / "1").rglob("a.so"))
    assert (found.read_bytes() == body) is closed
    loads = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).answer() != 42)"
    subprocess.run([sys.executable, "-c", loads, found], check=True)


def elf(path: Path, *segments: tuple[int, int, int]) -> Path:
    """A 64-bit ELF file with program headers (type, offset, address) and nothing else."""
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, len(segments)) + bytes(6)
    path.write_bytes(head + b"".join(struct.pack("<IIQQ", *s[:1], 5, *s[1:]) + bytes(32) for s in segments))
    return path


@pytest.mark.parametrize(
    ("segments", "good"),
    [
        ([(1, 0, 0), (1, 0x2000, 0x5000)], True),
        ([(1, 0x2010, 0x5010)], True),
        ([(1, 0, 0), (1, 0x2010, 0x5000)], False),  # what strip leaves of a patched library
        ([(2, 0x2010, 0x5000)], True),  # not a LOAD segment
    ],
)
def test_a_stripped_library_must_stay_loadable(
    trim: ModuleType, segments: list[tuple[int, int, int]], good: bool, tmp_path: Path
) -> None:
    assert trim.loadable(elf(tmp_path / "x.so", *segments)) is good


def test_what_is_not_an_elf_file_is_not_loadable(trim: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"!<arch>\n" * 20)
    assert not trim.loadable(tmp_path / "x")
    assert trim.loadable(Path(sys.executable).resolve())


def test_a_strip_whose_result_would_not_load_is_taken_back(
    trim: ModuleType, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = library(tmp_path / "a.so")
    site = tree("free", {"p/a.so": body})
    monkeypatch.setattr(trim, "loadable", lambda path: False)
    report = run(trim, site)
    assert next((trim.OUT / "1").rglob("a.so")).read_bytes() == body
    assert report["dropped"] == []
    assert not list(trim.OUT.rglob("*.stripped"))


def test_duplicates_share_one_inode_only_if_their_modes_agree(trim: ModuleType, tree: Tree) -> None:
    same = {f"p/{n}.bin": b"s" * 5000 for n in range(4)}
    site = tree("free", same | {"p/small-1": b"s", "p/small-2": b"s", "p/other.bin": b"o" * 5000})
    (site / "p/3.bin").chmod(0o755)
    run(trim, site)
    inode = {path.name: path.stat().st_ino for path in (trim.OUT / "1").rglob("p/*")}
    assert inode["0.bin"] == inode["1.bin"] == inode["2.bin"]
    assert len(set(inode.values())) == len(inode) - 2


def test_parts_are_balanced_and_hard_links_stay_together(trim: ModuleType, tree: Tree) -> None:
    big = {f"p/{n}.bin": os.urandom(300_000) for n in range(6)}
    twin = os.urandom(200_000)
    site = tree("free", big | {"p/zeros": bytes(3_000_000), "p/twin-1": twin, "q/twin-2": twin})
    run(trim, site, parts=2)
    found = [{path.name: path for path in (trim.OUT / part).rglob("*") if path.is_file()} for part in ("1", "2")]
    assert sum(name.endswith(".bin") for name in found[0]) == 3  # the zeros weigh next to nothing
    assert ("twin-1" in found[0]) == ("twin-2" in found[0])
    together = found[0 if "twin-1" in found[0] else 1]
    assert together["twin-1"].stat().st_ino == together["twin-2"].stat().st_ino


def test_the_whole_step_on_a_real_environment(tmp_path: Path) -> None:
    """As the build calls it, but for the root folder: a venv, a list of what was there before, a layer of one wheel."""
    text = (STEPS / "trim.py").read_text()
    venv, out = tmp_path / "opt/venv", tmp_path / "out"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    before = [str(path) for path in venv.rglob("*") if path.is_symlink() or not path.is_dir()]
    (tmp_path / "venv.list").write_text("\n".join(before))
    site = next(venv.glob("lib/*/site-packages"))
    (site / "m.py").write_text("x = 1\n")
    (site / "free-1.dist-info").mkdir()
    (site / "free-1.dist-info/METADATA").write_text(METADATA.format(name="free", more=""))
    (site / "free-1.dist-info/RECORD").write_text("m.py,,\nfree-1.dist-info/METADATA,,\nfree-1.dist-info/RECORD,,\n")
    for name, path in (("/opt/venv.list", tmp_path / "venv.list"), ("/opt/venv", venv), ("/out", out)):
        text = text.replace(f'"{name}"', f'"{path}"')
    (tmp_path / "trim.py").write_text(text)
    (tmp_path / "trim.json").write_text(json.dumps(rules.settings(EPOCH)))
    subprocess.run([venv / "bin/python", tmp_path / "trim.py", "one", "1"], check=True)
    moved = {path.name for path in (out / "1").rglob("*") if not path.is_dir()}
    assert moved == {"m.py", "METADATA", "RECORD", "one.json"}  # not what was there before
    report = json.loads((out / "1/opt/builder/layers/one.json").read_text())
    assert report["packages"]["free"]["version"] == "1"
    assert {path.stat().st_mtime for path in out.rglob("*")} == {EPOCH}


def test_bytecode_of_what_an_import_reads_and_tied_to_no_time(tmp_path: Path) -> None:
    venv, out = tmp_path / "opt/venv", tmp_path / "out"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/*/site-packages"))
    for name, body in (("a", "import b"), ("b", "import json"), ("c", "")):
        (site / f"{name}.py").write_text(body + "\n")
    text = (STEPS / "pyc.py").read_text().replace('"/out"', f'"{out}"').replace('"/opt/venv"', f'"{venv}"')
    (tmp_path / "pyc.py").write_text(text)
    subprocess.run([venv / "bin/python", tmp_path / "pyc.py", str(EPOCH), "a"], check=True)
    found = {path.name.split(".")[0]: path for path in out.rglob("*.pyc")}
    assert set(found) == {"a", "b"}  # not c, which nobody imports, and not json, which belongs to Python
    assert not list(site.rglob("*.pyc"))  # the layer below is as it was
    for path in found.values():
        assert path.read_bytes()[4:8] == b"\x01\x00\x00\x00"  # unchecked hash, PEP 552
        target = site / "__pycache__" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    os.utime(site / "b.py", (EPOCH, EPOCH))
    done = subprocess.run([venv / "bin/python", "-v", "-c", "import a"], capture_output=True, text=True, check=True)
    assert f"matches {site / 'b.py'}" in done.stderr  # Python took the bytecode, whatever the time of its source
    assert "wrote" not in done.stderr


def test_bytecode_of_the_standard_library_where_it_lies_there_without(tmp_path: Path) -> None:
    """As in a distroless image: what builder's runtime and the engine import gets its bytecode, whoever it belongs to."""
    venv, out, shipped, library = (tmp_path / name for name in ("opt/venv", "out", "opt/builder", "lib"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (shipped / "builder/runtime").mkdir(parents=True)
    library.mkdir()
    for path, body in (
        (shipped / "builder/__init__.py", ""),
        (shipped / "builder/runtime/serve.py", "import bare, compiled"),
        (shipped / "builder/runtime/__main__.py", "raise SystemExit(1)"),
        *((library / f"{name}.py", "") for name in ("bare", "compiled", "unread")),
        (next(venv.glob("lib/*/site-packages")) / "library.pth", str(library)),
    ):
        path.write_text(body + "\n")
    py_compile.compile(str(library / "compiled.py"))
    text = (STEPS / "pyc.py").read_text().replace('"/out"', f'"{out}"').replace('"/opt/builder"', f'"{shipped}"')
    (tmp_path / "pyc.py").write_text(text)
    subprocess.run([venv / "bin/python", tmp_path / "pyc.py", str(EPOCH), "json"], check=True, cwd="/")  # as in a build
    assert {path.name.split(".")[0] for path in out.rglob("*.pyc")} == {"bare"}


def test_a_module_that_cannot_be_imported_fails_the_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, STEPS / "pyc.py", str(EPOCH), "absent_module"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "No module named 'absent_module'" in done.stderr


def test_what_a_distroless_image_leaves_out_of_the_standard_library() -> None:
    unread, library = module("distroless").UNREAD, "/usr/lib/python3.11"
    gone = """__pycache__/json.pyc test/support/os_helper.py ctypes/test/__init__.py turtle.py crypt.py _pydecimal.py
        venv/__init__.py asyncio/windows_events.py config-3.11-x/python.o lib-dynload/_crypt.cpython-311.so
        lib-dynload/_testcapi.cpython-311.so lib-dynload/xxlimited_35.cpython-311.so"""
    kept = """json/__init__.py decimal.py io.py doctest.py unittest/mock.py encodings/gbk.py asyncio/unix_events.py codecs.py
        pydoc.py sqlite3/dbapi2.py multiprocessing/popen_spawn_posix.py _sysconfigdata__x86_64-linux-gnu.py
        lib-dynload/_decimal.cpython-311.so lib-dynload/_ctypes.cpython-311.so lib-dynload/_codecs_jp.cpython-311.so
        lib-dynload/_sqlite3.cpython-311.so"""
    assert [name for name in gone.split() if not unread.search(f"{library}/{name}")] == []
    assert [name for name in kept.split() if unread.search(f"{library}/{name}")] == []


@pytest.mark.parametrize("name", ["apt", "python", "user", "wheels", "compiler"])
def test_shell_steps_parse(name: str) -> None:
    subprocess.run(["sh", "-n", STEPS / name], check=True)
