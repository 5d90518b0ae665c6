"""Stubs of NVIDIA's own libraries, from their wheels: versions, hundreds of symbols of the C++ runtime, other linkers."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from builder.slim import stub, symbols
from tests.libraries import build, call
from tests.real_wheels import take, wheel

CURAND = ("nvidia-curand==10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc")
CUFILE = ("nvidia-cufile==1.15.1.6", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44")
IMPORTER = """
extern int curandCreateGenerator(void **, int), curandGetVersion(int *);
int loads(void) { return 40 + (curandCreateGenerator != curandGetVersion); }
int version(void) { int version; return curandGetVersion(&version); }
"""
THROWS = """
#include <stdexcept>
#include <sstream>
extern "C" int caught(void) {
    try { throw std::runtime_error("no"); }
    catch (std::exception &e) { std::ostringstream out; out << e.what() << 5; return out.str().size(); }
}
"""


@pytest.fixture
def curand(tmp_path: Path) -> Path:
    return take(wheel(*CURAND, "manylinux_2_27_x86_64"), "libcurand.so.10", tmp_path)


@pytest.fixture
def cufile(tmp_path: Path) -> Path:
    return take(wheel(*CUFILE, "manylinux2014_x86_64"), "libcufile.so.0", tmp_path)


def test_curand_becomes_nine_kilobytes_that_satisfy_what_was_linked_against_it(curand: Path, tmp_path: Path) -> None:
    importer = build(tmp_path, "libimporter.so", IMPORTER, needs=(curand,))
    original, size = symbols.read(curand), curand.stat().st_size
    assert call(importer, "loads", library_path=tmp_path).stdout == "41\n"
    done = stub.replace(curand, "curand")
    assert (done.bytes_before, done.functions, done.data, done.left_out) == (size, 27, 0, {})
    assert size > 130_000_000
    assert done.bytes_after == curand.stat().st_size < 10_000
    made = symbols.read(curand)
    assert {one.text for one in made.exports if not one.absolute} == {
        one.text for one in original.exports if not one.absolute
    }  # each a default version: curandGetVersion@@libcurand.so.10
    assert (made.soname, made.versions, made.needed) == (original.soname, original.versions, ())
    assert stub.missing(original, made, [symbols.read(importer)]) == ()
    assert call(importer, "loads", library_path=tmp_path).stdout == "41\n"


def test_a_call_of_curand_says_so_and_aborts(curand: Path, tmp_path: Path) -> None:
    importer = build(tmp_path, "libimporter.so", IMPORTER, needs=(curand,))
    stub.replace(curand, "curand")
    for done in (call(importer, "version", library_path=tmp_path), call(curand, "curandGetVersion")):
        assert done.returncode == -signal.SIGABRT
        assert done.stderr == (
            "stub: curandGetVersion of libcurand.so.10 was taken out of this image; "
            "take curand out of image.stubs in builder.yaml and build again\n"
        )


def test_cufile_leaves_the_cpp_runtime_to_the_cpp_runtime(cufile: Path, tmp_path: Path) -> None:
    """It exports 445 symbols of libstdc++. Loaded first, as torch loads it, a stub of them would end every exception."""
    original = symbols.read(cufile)
    done = stub.replace(cufile, "cufile")
    made = symbols.read(cufile)
    offered = {one.name for one in made.exports}
    assert {"cuFileRead", "cuFileWrite", "cuFileDriverOpen", "cuFileHandleRegister"} <= offered
    assert not [name for name in offered if re.match(r"_Z[A-Zt]*?N?K?St\d|_init$|_fini$", name)]
    assert len(done.left_out["the C++ runtime's"]) == 445
    assert len(offered) + sum(map(len, done.left_out.values())) == len({one.name for one in original.exports})
    user = build(tmp_path, "libuser.so", THROWS, "-xc++")
    assert call(user, "caught", before=f"ctypes.CDLL({str(cufile)!r}, mode=ctypes.RTLD_GLOBAL)").stdout == "3\n"
