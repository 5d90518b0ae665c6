"""The proof: it must fail where something is wrong, and say so where it can prove nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ClaimError
from builder.slim import proof, tree
from builder.slim.chips import Chip
from tests import fatbins

H100 = (Chip(9, 0),)
CODE: list[fatbins.Container] = [
    [("sm_80", fatbins.cubin("sm_80", 40_000)), ("sm_90", fatbins.cubin("sm_90", 30_000)), ("compute_90", fatbins.ptx("x"))]
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return fatbins.make(tmp_path / "site", "a.so", CODE)


def cuobjdump(folder: Path, elf: str, ptx: str = "", *, fails: str = "") -> Path:
    """A program that lists what it is told to: the true one is used in tests/integration/slim."""
    path = folder / "cuobjdump"
    path.write_text(
        "#!/bin/sh\n"
        f'test "$1" = --version && exit 0\n'
        f'test "$1" = --all-fatbin || exit 9\n'
        f"{fails}\n"
        f'case "$2" in --list-elf) printf %s "{elf}";; --list-ptx) printf %s "{ptx}";; *) exit 9;; esac\n'
    )
    path.chmod(0o755)
    return path


def listing(*chips: str) -> str:
    return "".join(f"ELF file    {i}: a.1.{chip}.cubin\n" for i, chip in enumerate(chips, 1))


def prune(library: Path, program: Path | None, *, load: bool = False) -> tuple[tree.Report, bytes, bytes]:
    before = library.read_bytes()
    report = tree.slim([library], H100, "all", cuobjdump=program, load=load)
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    return report, before, library.read_bytes()


def test_what_is_listed_as_kept_is_accepted(library: Path, tmp_path: Path) -> None:
    report, before, after = prune(library, cuobjdump(tmp_path, listing("sm_90")))
    assert report.failure() is None
    assert report.verified
    assert before != after


@pytest.mark.parametrize(
    ("elf", "ptx", "said"),
    [
        (listing("sm_80", "sm_90"), "", "lists 1 of sm_80; expected 0"),
        ("", "", "lists 0 of sm_90; expected 1"),
        (listing("sm_90", "sm_90"), "", "lists 2 of sm_90; expected 1"),
        (listing("sm_90a"), "", "lists 1 of sm_90a; expected 0"),
        (listing("sm_90"), "PTX file    1: a.1.sm_90.ptx\n", "--list-ptx lists 1 of sm_90; expected 0"),
    ],
)
def test_a_listing_that_differs_leaves_the_file_as_it_was(library: Path, tmp_path: Path, elf: str, ptx: str, said: str) -> None:
    report, before, after = prune(library, cuobjdump(tmp_path, elf, ptx))
    failure = report.failure()
    assert isinstance(failure, ClaimError)
    assert said in failure.message
    assert before == after
    assert report.files[0].status == "failed"


def test_a_file_that_only_became_unreadable_is_a_fault(library: Path, tmp_path: Path) -> None:
    program = cuobjdump(tmp_path, listing("sm_90"), fails='case "$3" in *slim-*) echo "Invalid ELF in $3" >&2; exit 1;; esac')
    report, before, after = prune(library, program)
    failure = report.failure()
    assert isinstance(failure, ClaimError)
    assert "Invalid ELF" in failure.message
    assert before == after


def test_a_file_that_could_not_be_read_before_either_is_noted(library: Path, tmp_path: Path) -> None:
    program = cuobjdump(tmp_path, "", fails='echo "Invalid ELF in $3" >&2; exit 1')
    report, before, after = prune(library, program)
    assert report.failure() is None
    assert before != after
    assert report.files[0].notes == ("cuobjdump cannot read it, nor the original: exit code 1: Invalid ELF in a.so",)


def test_a_cuobjdump_that_is_not_there_or_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapabilityError, match="nowhere: does not start"):
        proof.find_cuobjdump(str(tmp_path / "nowhere"))
    (tmp_path / "cuobjdump").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    (tmp_path / "cuobjdump").chmod(0o755)
    with pytest.raises(CapabilityError, match="exit code 3: broken"):
        proof.find_cuobjdump(str(tmp_path / "cuobjdump"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError, match="exit code 3: broken"):
        proof.find_cuobjdump()


def build(folder: Path, name: str, code: str, *options: str) -> Path:
    path = folder / name
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", path, *options]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def test_a_library_that_only_binds_late_is_told_from_one_that_loads(tmp_path: Path) -> None:
    whole = build(tmp_path, "old.so", "int f(void) { return 1; }")
    late = build(tmp_path, "new.so", "extern int missing(void); int f(void) { return missing(); }", "-Wl,-z,lazy")
    fault, note = proof.loads(late, whole)
    assert fault.startswith("dlopen with RTLD_NOW: ")
    assert "undefined symbol: missing" in fault
    assert fault.endswith("the original loads")
    assert note == ""
    assert proof.loads(whole, late) == ("", "")


def test_a_name_that_is_a_part_of_the_message_is_no_fault(tmp_path: Path) -> None:
    """The loader takes no executable; one named x: every x in what it says of the original is not that name."""
    source = "int main(void) { return 0; }"
    subprocess.run(["gcc", "-pie", "-x", "c", "-", "-o", tmp_path / "x"], input=source, text=True, check=True)
    new = Path(shutil.copy(tmp_path / "x", tmp_path / ".x.slim-0123abcd"))
    fault, note = proof.loads(new, tmp_path / "x")
    assert fault == ""
    assert note.startswith("does not load here, nor did the original: x: cannot dynamically load ")
    assert note.endswith(" executable")


def test_refusals_are_compared_without_the_names_of_the_files(library: Path, tmp_path: Path) -> None:
    path = library.rename(library.with_name("e"))
    far = "x" * 290  # so long that of a longer path less would be shown
    program = cuobjdump(tmp_path, "", fails=f'echo "Invalid ELF in $3 {far}" >&2; exit 1')
    report = tree.slim([path], H100, "all", cuobjdump=program)
    assert report.failure() is None
    assert report.files[0].notes[0].endswith(f" e {far}")


def test_a_dependency_that_is_not_here_is_a_note_when_the_original_lacks_it_too(tmp_path: Path) -> None:
    build(tmp_path, "libabsent.so.1", "int g(void) { return 1; }", "-Wl,-soname,libabsent.so.1")
    old = build(tmp_path, "old.so", "extern int g(void); int f(void) { return g(); }", str(tmp_path / "libabsent.so.1"))
    (tmp_path / "libabsent.so.1").unlink()
    new = Path(shutil.copy(old, tmp_path / "new.so"))
    fault, note = proof.loads(new, old)
    assert fault == ""
    assert note.startswith("does not load here, nor did the original: libabsent.so.1: cannot open shared object file")


def test_a_library_that_crashes_as_it_loads_is_a_fault(tmp_path: Path) -> None:
    old = build(tmp_path, "old.so", "int f(void) { return 1; }")
    new = build(tmp_path, "new.so", "__attribute__((constructor)) void c(void) { *(volatile int *)0 = 1; }")
    assert proof.loads(new, old)[0] == "dlopen with RTLD_LAZY: ended by signal 11; the original loads"


def test_a_library_that_no_longer_loads_is_not_put_in_its_place(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is the real one; what prune writes is spoilt behind its back."""
    whole = tree.prune

    def spoilt(source: Path, target: Path | None, gpus: tuple[Chip, ...]) -> object:
        found = whole(source, target, gpus)
        if target:
            with target.open("r+b") as file:
                file.seek(18)
                file.write(b"\xb7\x00")  # machine: aarch64
        return found

    monkeypatch.setattr(tree, "prune", spoilt)
    report, before, after = prune(library, None, load=True)
    failure = report.failure()
    assert isinstance(failure, ClaimError)
    assert "dlopen with RTLD_LAZY: a.so: cannot open shared object file" in failure.message
    assert before == after
