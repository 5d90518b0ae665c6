"""Real libraries, NVIDIA's own tool, the real loader: NCCL (one library of 237 MB) and bitsandbytes (seven, CUDA 11.8 to 13.2).

The wheels are fetched once, by hash, into the cache folder of this user.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from builder.slim import proof, tree
from builder.slim.chips import Chip
from builder.slim.report import Item, Report
from tests.conftest import missing

WHEELS = {
    "nvidia-nccl-cu13==2.29.7": "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
    "bitsandbytes==0.50.2": "55348a9a4a21bfd99cf8c7b32fe67b4030ae5c2a05738e03c1747f65fa6ec283",
    "nvidia-cuda-cuobjdump==13.5.37": "38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58",
}
H100 = (Chip(9, 0),)
A100_H100 = (Chip(8, 0), Chip(9, 0))
VERSION = """
import ctypes, sys
lib, version = ctypes.CDLL(sys.argv[1]), ctypes.c_int()
assert lib.ncclGetVersion(ctypes.byref(version)) == 0
print(version.value)
"""


def fetched(name: str) -> Path:
    """The wheel, as pip's own settings find it; its hash is the one above."""
    digest = WHEELS[name]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "builder/wheels" / digest
    found = list(folder.glob("*.whl"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.txt").write_text(f"{name} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run(
            [*pip, "-d", folder, "-r", folder / "requirements.txt"], capture_output=True, text=True, check=False
        )
        found = list(folder.glob("*.whl"))
        if done.returncode or not found:
            missing("wheels", f"{name} cannot be fetched: {done.stderr.strip()[-300:]}")
    assert hashlib.sha256(found[0].read_bytes()).hexdigest() == digest
    return found[0]


@pytest.fixture(scope="module")
def cuobjdump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuobjdump")
    with zipfile.ZipFile(fetched("nvidia-cuda-cuobjdump==13.5.37")) as wheel:
        wheel.extractall(folder)
    (program,) = folder.glob("nvidia/*/bin/cuobjdump")
    program.chmod(0o755)
    return proof.find_cuobjdump(str(program))


def installed(folder: Path, *names: str) -> Path:
    for name in names:
        with zipfile.ZipFile(fetched(name)) as wheel:
            wheel.extractall(folder)
    return folder


def extracted(library: Path, cuobjdump: Path, folder: Path, chip: str) -> Counter[str]:
    """The sha256 of each cubin for `chip`, as cuobjdump unpacks it."""
    folder.mkdir()
    done = subprocess.run(
        [cuobjdump, "--all-fatbin", "--extract-elf", f".{chip}.", library], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir())
    for path in folder.iterdir():
        path.unlink()
    return found


def readable(library: Path) -> None:
    """binutils, which knows nothing of us, finds no fault with headers, segments, sections, relocations or symbols."""
    done = subprocess.run(
        ["readelf", "--file-header", "--segments", "--sections", "--relocs", "--dynamic", "--dyn-syms", "-W", library],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "warning" not in done.stderr.lower()
    assert "error" not in done.stderr.lower()


def recorded(body: bytes) -> str:
    """A digest as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def by_name(report: Report) -> dict[str, Item]:
    return {one.path.rpartition("/")[2]: one for one in report.files}


def test_nccl_for_one_chip_with_every_proof(tmp_path: Path, cuobjdump: Path) -> None:
    site = installed(tmp_path / "site", "nvidia-nccl-cu13==2.29.7")
    library = site / "nvidia/nccl/lib/libnccl.so.2"
    left = tree.slim([site], H100, "oss")
    assert left.files[0].status == "licence"
    assert "a person should decide" in left.files[0].reason
    assert recorded(library.read_bytes()) in (site / "nvidia_nccl_cu13-2.29.7.dist-info/RECORD").read_text()
    before = extracted(library, cuobjdump, tmp_path / "before", "sm_90")
    assert before.total() == 146

    report = tree.slim([site], H100, "all", cuobjdump=cuobjdump, load=True)
    assert report.failure() is None
    (found,) = report.files
    assert (found.status, found.notes) == ("pruned", ())  # no note: listed, and loaded on this machine
    assert found.after.keys() == {"sm_90"}
    assert found.pruned is not None
    assert len(found.pruned.kept) == 146
    assert library.stat().st_size < 190_000_000 < found.size_before
    assert library.stat().st_blocks * 512 < 80_000_000
    assert found.packed_after < 45_000_000 < 200_000_000 < found.packed_before
    assert extracted(library, cuobjdump, tmp_path / "after", "sm_90") == before
    readable(library)

    answer = [sys.executable, "-c", VERSION, library]
    assert subprocess.run(answer, capture_output=True, text=True, check=True).stdout == "22907\n"

    stat = library.stat()
    again = tree.slim([site], H100, "all")
    assert by_name(again)["libnccl.so.2"].status == "nothing-to-drop"
    assert library.stat() == stat


def test_bitsandbytes_for_two_chips_in_the_profile_that_may(tmp_path: Path, cuobjdump: Path) -> None:
    site = installed(tmp_path / "site", "bitsandbytes==0.50.2")
    report = tree.slim([site], A100_H100, "oss", cuobjdump=cuobjdump, load=True)
    assert report.failure() is None
    files = by_name(report)
    assert set(files) == {f"libbitsandbytes_cuda{cuda}.so" for cuda in (118, 121, 124, 126, 128, 130, 132)}
    for one in files.values():
        assert one.status == "pruned"
        assert one.decision.package == "bitsandbytes"
        assert one.after.keys() == {"sm_80", "sm_90"}
        assert one.pruned is not None
        assert one.pruned.runs_on == ("8.0", "9.0")
        assert one.size_after < one.size_before
        readable(Path(one.path))
    # It needs no GPU to be loaded, only CUDA's libraries, which are not here: the note says so, of the original too.
    assert all(any("nor did the original" in note for note in one.notes) for one in files.values())
    # 13.5's cuobjdump reads all but this one, which is CUDA 12.1's.
    unread = {name for name, one in files.items() if any("cuobjdump cannot read it" in note for note in one.notes)}
    assert unread == {"libbitsandbytes_cuda121.so"}
    assert report.packed[1] < report.packed[0] / 2
