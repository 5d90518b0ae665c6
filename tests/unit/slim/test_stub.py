"""Stubs of libraries that gcc made: every importer still loads, and a call says what was called."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import stat
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from builder.config import spec
from builder.errors import CapabilityError, ConfigError, IntegrityError
from builder.slim import stub, stub_code, stubs, symbols
from tests.libraries import build, call

LIBRARY = """
int plain(void) { return 1; }
__attribute__((weak)) int weakly(void) { return 2; }
int one_v1(void) { return 11; }
int one_v2(void) { return 12; }
__asm__(".symver one_v1, one@V1");
__asm__(".symver one_v2, one@@V2");
int table[6] = {1, 2, 3};
extern int alias[6] __attribute__((alias("table")));
char wide[64] __attribute__((aligned(64))) = "x";
char odd[3] = "o";
char page[128] __attribute__((aligned(32))) = "p";
__attribute__((visibility("protected"))) int guarded(void) { return 3; }
__thread long per_thread = 7;
static int chosen_one(void) { return 5; }
static int (*pick(void))(void) { return chosen_one; }
int chosen(void) __attribute__((ifunc("pick")));
"""
VERSIONS = """
V1 { global: plain; weakly; table; alias; wide; odd; page; guarded; local: one_v*; };
V2 { global: per_thread; chosen; } V1;
V3 { } V2;
"""
IMPORTER = """
extern int plain(void), one(void), one_old(void), chosen(void);
__asm__(".symver one_old, one@V1");
__attribute__((weak)) extern int weakly(void);
extern int table[6], alias[6];
extern char wide[64];
extern __thread long per_thread;
int loads(void) { return 77 + table[0] + wide[0] + (int)per_thread; }
int same(void) { return table == alias && (unsigned long)wide % 64 == 0; }
int weak_is_there(void) { return weakly != 0; }
int calls_plain(void) { return plain(); }
int calls_new(void) { return one(); }
int calls_old(void) { return one_old(); }
int calls_chosen(void) { return chosen(); }
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A library and what was linked against it."""
    library = build(tmp_path, "libcurand.so.10", LIBRARY, versions=VERSIONS)
    return library, build(tmp_path, "libimporter.so", IMPORTER, needs=(library,))


def test_an_importer_of_versions_data_and_tls_loads_with_everything_bound(pair: tuple[Path, Path]) -> None:
    library, importer = pair
    assert call(importer, "loads", library_path=library.parent).stdout == f"{77 + 1 + ord('x') + 7}\n"
    original, asking = symbols.read(library), symbols.read(importer)
    done = stub.replace(library, "curand")
    assert call(importer, "loads", library_path=library.parent).stdout == "77\n"  # all data is zero
    assert call(importer, "same", library_path=library.parent).stdout == "1\n"
    assert call(importer, "weak_is_there", library_path=library.parent).stdout == "1\n"
    assert stub.missing(original, symbols.read(library), [asking]) == ()
    assert (done.functions, done.data, done.left_out) == (6, 6, {})
    assert symbols.read(library).versions == original.versions
    assert symbols.read(library).needed == ()


@pytest.mark.parametrize(
    ("function", "named"), [("calls_plain", "plain"), ("calls_new", "one"), ("calls_old", "one"), ("calls_chosen", "chosen")]
)
def test_a_call_names_symbol_library_and_way_back_and_aborts(pair: tuple[Path, Path], function: str, named: str) -> None:
    library, importer = pair
    stub.replace(library, "curand")
    done = call(importer, function, library_path=library.parent)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == (
        f"stub: {named} of libcurand.so.10 was taken out of this image; "
        "take curand out of image.stubs in builder.yaml and build again\n"
    )


@pytest.mark.parametrize(
    "before",
    [
        "import signal; signal.signal(signal.SIGABRT, signal.SIG_IGN)",
        "import signal; signal.signal(signal.SIGABRT, lambda *_: None)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGABRT])",
    ],
)
def test_no_handler_and_no_mask_lets_a_call_return(pair: tuple[Path, Path], before: str) -> None:
    stub.replace(pair[0], "curand")
    done = call(pair[0], "plain", before=before)
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, "")


def test_faulthandler_still_shows_who_called(pair: tuple[Path, Path]) -> None:
    stub.replace(pair[0], "curand")
    done = call(pair[0], "plain", before="import faulthandler; faulthandler.enable()")
    assert done.stderr.splitlines()[0].startswith("stub: plain of libcurand.so.10")
    assert "most recent call first" in done.stderr


def test_a_thread_ends_the_process_too(pair: tuple[Path, Path]) -> None:
    stub.replace(pair[0], "curand")
    threaded = (
        "import threading; l = ctypes.CDLL(sys.argv[1]); t = threading.Thread(target=lambda: l.plain()); t.start(); t.join()"
    )
    assert call(pair[0], "plain", before=f"{threaded}; print('alive')").stdout == ""


def test_data_keeps_its_size_and_alignment(pair: tuple[Path, Path]) -> None:
    before = {one.name: one for one in symbols.read(pair[0]).exports if one.kind == "object" and not one.absolute}
    stub.replace(pair[0], "curand")
    after = {one.name: one for one in symbols.read(pair[0]).exports if one.kind == "object" and not one.absolute}
    assert {name: one.size for name, one in after.items()} == {name: one.size for name, one in before.items()}
    assert (after["wide"].value % 64, after["page"].value % 32, after["table"].value % 4) == (0, 0, 0)
    spans = sorted((one.value, one.value + one.size) for name, one in after.items() if name != "alias")
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_dlsym_finds_what_no_importer_names(tmp_path: Path) -> None:
    library = build(tmp_path, "libcufft.so.12", "int a(void) { return 1; }\nint b(void) { return 2; }")
    stub.replace(library, "cufft")
    loaded = ctypes.CDLL(str(library))
    assert loaded.a
    assert loaded.b


CPP = r"""
#include <stdexcept>
#include <string>
namespace own { int f(std::string text) { return text.size(); } inline int g() { static int n; return ++n; } }
struct Shape { virtual ~Shape(); virtual int area(); };
Shape::~Shape() {}
int Shape::area() { return 3; }
int caught_one(void) {
    try { throw std::runtime_error("x"); } catch (std::exception &e) { return own::g() + std::string(e.what()).size(); }
}
extern "C" int caught(void) { return caught_one(); }
"""
CARRIED = """
void like_runtime_error(void *self, const char *text) __asm__("_ZNSt13runtime_errorC1EPKc");
void like_runtime_error(void *self, const char *text) {}
void *like_new(unsigned long size) __asm__("_Znwm");
void *like_new(unsigned long size) { return 0; }
void like_throw(void) __asm__("__cxa_throw");
void like_throw(void) {}
void like_clone(void) __asm__("_ZGTtNSt11logic_errorC1EPKc");
void like_clone(void) {}
char like_class[16] __asm__("_ZTINSt8ios_base7failureE");
int cuFileRead(void) { return 1; }
"""
"""libcufile.so.0 exports 445 symbols of libstdc++; here are five of them."""


def test_what_belongs_to_the_cpp_runtime_is_left_out(tmp_path: Path) -> None:
    library = build(tmp_path, "libcufile.so.0", CARRIED)
    done = stub.replace(library, "cufile")
    assert done.left_out == {
        "the C++ runtime's": (
            "_ZGTtNSt11logic_errorC1EPKc", "_ZNSt13runtime_errorC1EPKc", "_ZTINSt8ios_base7failureE", "_Znwm", "__cxa_throw",
        )
    }  # fmt: skip
    assert [one.name for one in symbols.read(library).exports] == ["cuFileRead"]


def test_cpp_of_others_works_beside_a_stub(tmp_path: Path) -> None:
    """The stub is first in the order of look-up, as torch's libraries are; another library throws and catches."""
    library, user = build(tmp_path, "libcufile.so.0", CARRIED), build(tmp_path, "libuser.so", CPP, "-xc++")
    first = f"ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)"
    assert call(user, "caught", before=first).returncode != 0  # as the original would do with it: the test can fail
    stub.replace(library, "cufile")
    assert call(user, "caught", before=first).stdout == "2\n"


def test_own_cpp_is_kept_and_what_every_user_compiles_itself_is_not(tmp_path: Path) -> None:
    library = build(tmp_path, "libcufile.so.0", CPP, "-xc++", "-O0")
    done = stub.replace(library, "cufile")
    offered = {one.name for one in symbols.read(library).exports}
    assert {"caught", "_Z10caught_onev", "_ZN5Shape4areaEv"} <= offered
    assert any(name.startswith("_ZN3own1f") for name in offered)  # its own, though it takes a std::string
    assert "_ZN3own1gEv" in done.left_out["inline C++ code"]
    assert {"_ZTV5Shape", "_ZTI5Shape"} <= set(done.left_out["tables of C++ classes"])


def test_others_c_code_is_left_out_where_the_table_names_it(tmp_path: Path) -> None:
    library = build(tmp_path, "libcufile.so.0", "int cuFileRead(void) { return 1; }\nint ck_ht_init(void) { return 2; }")
    assert stub.replace(library, "cufile").left_out == {"others' code that it carries": ("ck_ht_init",)}


def test_symbols_with_and_without_version_in_one_library(tmp_path: Path) -> None:
    library = build(
        tmp_path, "libnccl.so.2", "int old(void) { return 1; }\nint bare(void) { return 2; }", versions="V1 { old; };"
    )
    importer = build(
        tmp_path, "libuser.so", "int old(void), bare(void); int loads(void) { return 4 + (old == bare); }", needs=(library,)
    )
    before = {one.text for one in symbols.read(library).exports if not one.absolute}
    stub.replace(library, "nccl")
    assert {one.text for one in symbols.read(library).exports if not one.absolute} == before == {"old@@V1", "bare"}
    assert call(importer, "loads", library_path=tmp_path).stdout == "4\n"


def test_an_importer_that_wants_more_is_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    library, importer = pair
    original = symbols.read(library)
    poorer = build(tmp_path / "poor", "libcurand.so.10", "int plain(void) { return 1; }", versions="V1 { plain; };")
    assert stub.missing(original, symbols.read(poorer), [symbols.read(importer)]) == (
        "alias@V1", "chosen@V2", "one@V1", "one@V2", "per_thread@V2", "table@V1", "weakly@V1", "wide@V1",
    )  # fmt: skip


def test_mode_kept_twice_is_once_and_nothing_is_left_behind(pair: tuple[Path, Path]) -> None:
    library = pair[0]
    library.chmod(0o751)
    names, size = set(library.parent.iterdir()), library.stat().st_size
    first = stub.replace(library, "curand")
    body, when, inode = library.read_bytes(), library.stat().st_mtime_ns, library.stat().st_ino
    second = stub.replace(library, "curand")
    assert (library.read_bytes(), library.stat().st_mtime_ns, library.stat().st_ino) == (body, when, inode)
    assert (first.done, second.done) == (True, False)
    assert first.to_json() | {"left_out": {}} == second.to_json()
    assert (first.bytes_before, first.bytes_after) == (size, len(body))
    assert stat.S_IMODE(library.stat().st_mode) == 0o751
    assert set(library.parent.iterdir()) == names


def test_a_stub_is_recognised_and_says_what_it_stands_for(pair: tuple[Path, Path]) -> None:
    library = pair[0]
    assert not stub.is_stub(library)
    before = library.read_bytes()
    stub.replace(library, "curand")
    origin = stub.origin(library)
    assert origin is not None
    digest = subprocess.run(["sha256sum"], input=before, capture_output=True, check=True).stdout.decode().split()[0]
    assert (origin.file, origin.name, origin.size, origin.sha256) == ("libcurand.so.10", "curand", len(before), digest)


def test_the_same_library_makes_the_same_bytes_anywhere(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / pair[0].name
    other.parent.mkdir()
    shutil.copy(pair[0], other)
    stub.replace(pair[0], "curand")
    stub.replace(other, "curand")
    assert other.read_bytes() == pair[0].read_bytes()
    assert str(tmp_path).encode() not in other.read_bytes()


def test_strip_leaves_a_stub_a_stub(pair: tuple[Path, Path]) -> None:
    stub.replace(pair[0], "curand")
    subprocess.run(["strip", "--strip-unneeded", pair[0]], check=True)
    assert stub.is_stub(pair[0])
    assert call(pair[1], "calls_plain", library_path=pair[0].parent).returncode == -signal.SIGABRT


def test_neither_stack_nor_data_can_run_code(pair: tuple[Path, Path]) -> None:
    stub.replace(pair[0], "curand")
    headers = subprocess.run(["readelf", "-lW", pair[0]], capture_output=True, text=True, check=True).stdout
    flags = [line.split()[6:-1] for line in headers.splitlines() if line.split()[:1] in (["LOAD"], ["GNU_STACK"])]
    assert flags
    assert not [one for one in flags if "RWE" in "".join(one) or ("W" in "".join(one) and "E" in "".join(one))]


def refused(path: Path, error: type[Exception], match: str) -> None:
    before = path.read_bytes()
    with pytest.raises(error, match=match):
        stub.replace(path, "curand")
    assert path.read_bytes() == before
    assert list(path.parent.glob(".*.stub-*")) == []


def test_what_is_no_library_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "libcurand.so.10"
    path.write_bytes(b"GROUP ( libcurand.so.11 )\n")
    refused(path, ConfigError, "not an ELF file")


def test_a_damaged_library_is_untouched(pair: tuple[Path, Path]) -> None:
    body = pair[0].read_bytes()
    pair[0].write_bytes(body[:600])
    refused(pair[0], IntegrityError, "beyond the file's end")


def test_a_symbolic_link_is_refused(pair: tuple[Path, Path]) -> None:
    link = pair[0].with_name("libcurand.so")
    link.symlink_to(pair[0].name)
    with pytest.raises(ConfigError, match="not a regular file"):
        stub.replace(link, "curand")
    assert link.is_symlink()


def test_a_machine_without_binutils_is_told_so(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError, match="as: program not found") as caught:
        stub.replace(pair[0], "curand")
    assert caught.value.hint == "apt-get install binutils"
    assert not stub.is_stub(pair[0])


def test_a_version_name_cannot_write_into_the_linkers_script(pair: tuple[Path, Path]) -> None:
    body = pair[0].read_bytes()
    assert b"\0V3\0" in body
    pair[0].write_bytes(body.replace(b"\0V3\0", b"\0;}\0"))
    refused(pair[0], IntegrityError, "version ';}'")


def test_an_unknown_name_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="cublas"):
        stub.replace(pair[0], "cublas")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_source_for_either_machine_needs_no_library_and_no_relocation(machine: str, tmp_path: Path) -> None:
    """Of both machines where the cross tools are (binutils-aarch64-linux-gnu), run where qemu-user-static is too."""
    prefix = "" if os.uname().machine == machine else f"{machine}-linux-gnu-"
    if not shutil.which(f"{prefix}as"):
        pytest.skip(f"no {prefix}as here")
    symbol = symbols.Symbol("f", "", True, "function", "global", False, 64, 8, False)
    (tmp_path / "f.s").write_text(stub_code.assembler(machine, "libf.so.1", "cufft", [symbol], b"{}"))
    (tmp_path / "start.s").write_text(f".globl _start\n_start:\n {'b' if machine == 'aarch64' else 'jmp'} f\n")
    for name in ("f", "start"):
        subprocess.run([f"{prefix}as", "-o", f"{name}.o", f"{name}.s"], cwd=tmp_path, check=True)
    subprocess.run([f"{prefix}ld", "-o", "program", "start.o", "f.o"], cwd=tmp_path, check=True)
    emulator = [] if not prefix else [f"qemu-{machine}-static"]
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"no {emulator[0]} here")
    done = subprocess.run([*emulator, tmp_path / "program"], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.startswith("stub: f of libf.so.1 was taken out of this image; take cufft out of image.stubs")


def test_the_names_of_the_table_are_those_of_the_description() -> None:
    assert get_args(spec.StubName) == stubs.NAMES


def test_a_file_is_matched_by_name_and_wheel() -> None:
    every = stubs.NAMES
    assert stubs.of_file("libcusparse.so.12", "nvidia-cusparse", every) == "cusparse"
    assert stubs.of_file("libcusparse.so.12", "nvidia-cusparse-cu12", every) == "cusparse"
    assert stubs.of_file("libcusparseLt.so.0", "nvidia-cusparselt-cu13", every) == "cusparselt"
    assert stubs.of_file("libcusparse.so.12", "nvidia-cusparse", ["curand"]) == ""
    assert stubs.of_file("libcusparse.so.12", "somebody-else", every) == ""
    assert stubs.of_file("libcusolverMg.so.12", "nvidia-cusolver", every) == ""
    assert stubs.of_file("libcufft.so.12.bak", "", every) == ""
    with pytest.raises(ConfigError, match="cublas"):
        stubs.of_file("libcublas.so.13", "", ["cublas"])


def test_the_page_says_of_each_what_the_table_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "stubs.md").read_text()
    table = page.split("## Which there are")[1].split("##")[0]
    rows = {row[0]: row for row in (line.strip("| ").split(" | ") for line in table.splitlines()) if row[0] in stubs.NAMES}
    assert tuple(rows) == stubs.NAMES
    for one in stubs.STUBS:
        name, file, _, loses, *callers = rows[one.name]
        assert (name, loses, ", ".join(callers)) == (one.name, one.loses, ", ".join(one.callers))
        assert re.fullmatch(one.files, f"{file}.so.12")
