"""trim.py LAYER PARTS: make what this layer's wheels installed small, then move it to /out/1 to /out/PARTS; what only a
compiler reads, to /out/toolkit.

steps/trim.json beside this file names what is dropped, and the time that every file gets. What was in /opt/venv before the
wheels (/opt/venv.list) belongs to the layer `runtime`. A report of every byte goes along: /opt/builder/layers/LAYER.json.
With prune.py beside this file, GPU code goes too. Runs inside the build with the virtual environment's own Python; standard
library only.
"""

import collections
import concurrent.futures
import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

VENV = Path("/opt/venv")
OUT = Path("/out")
PAGE = 4096
PT_LOAD = 1
LINK_BYTES = 4096  # a smaller duplicate costs less than the link's own entry is worth
SAMPLE, STRIDE = 64 << 10, 1 << 20


class Files:
    """The files of this layer, the package that each belongs to, and what happened to them."""

    def __init__(self, venv: Path, site: Path, mine: list[Path]) -> None:
        self.venv, self.site = venv, site
        self.sizes = {path: path.lstat().st_size for path in mine}
        self.owner, self.versions, self.closed = owners(site)
        self.installed = collections.Counter()
        for path, size in self.sizes.items():
            self.installed[self.package(path)] += size
        self.dropped: dict[tuple[str, str], list[int]] = {}
        self.toolkit: dict[tuple[str, str], list[int]] = {}

    def package(self, path: Path) -> str:
        return self.owner.get(str(path), "")

    def drop(self, path: Path, cause: str) -> None:
        self.note(path, cause, self.sizes.pop(path))
        path.unlink()

    def set_aside(self, path: Path, cause: str) -> None:
        entry = self.toolkit.setdefault((self.package(path), cause), [0, 0])
        entry[0] += self.sizes.pop(path)
        entry[1] += 1
        move(path, OUT / "toolkit")

    def note(self, path: Path, cause: str, size: int) -> None:
        entry = self.dropped.setdefault((self.package(path), cause), [0, 0])
        entry[0] += size
        entry[1] += 1

    def report(self, layer: str) -> dict:
        kept, counts = collections.Counter(), collections.Counter()
        for path, size in self.sizes.items():
            kept[self.package(path)] += size
            counts[self.package(path)] += 1
        packages = {
            name: {
                "version": self.versions.get(name, ""),
                "installed_bytes": self.installed[name],
                "kept_bytes": kept[name],
                "files": counts[name],
            }
            for name in sorted(self.installed)
        }
        return {"layer": layer, "packages": packages, "dropped": entries(self.dropped), "toolkit": entries(self.toolkit)}


def entries(counted: dict[tuple[str, str], list[int]]) -> list[dict]:
    return [
        {"package": name, "cause": cause, "bytes": size, "files": files}
        for (name, cause), (size, files) in sorted(counted.items())
    ]


def main(layer: str, parts: int) -> None:
    settings = json.loads(Path(__file__).with_name("trim.json").read_text())
    before = set(Path("/opt/venv.list").read_text().splitlines())
    mine = [path for path in walk(VENV) if layer == "runtime" or str(path) not in before]
    files = Files(VENV, Path(sysconfig.get_path("purelib")), mine)
    sort_out(files, settings["rules"])
    strip(files)
    link_duplicates(files)
    prune(files, layer)
    split(files, parts)
    for_linkers(files.site)
    note = OUT / "1/opt/builder/layers" / f"{layer}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(files.report(layer), indent=1, sort_keys=True) + "\n")
    for path in [OUT, *OUT.rglob("*")]:
        os.utime(path, (settings["epoch"],) * 2, follow_symlinks=False)


def walk(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())


def owners(site: Path) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Path to package, package to version, by the RECORD of each dist-info; names as the index compares them.

    Third, the packages whose files a licence forbids to change: NVIDIA's own, and what calls itself proprietary.
    """
    owner, versions, closed = {}, {}, set()
    for info in sorted(site.glob("*.dist-info")):
        name, version = info.name.removesuffix(".dist-info").rsplit("-", 1)
        name = re.sub(r"[-_.]+", "-", name).lower()
        versions[name] = version
        head = (info / "METADATA").read_text(errors="replace").split("\n\n")[0]
        if name.startswith("nvidia-") or re.search(
            r"^(License|License-Expression|Classifier: License).*(NVIDIA|Proprietary)", head, re.M
        ):
            closed.add(name)
        for row in csv.reader((info / "RECORD").read_text().splitlines()):
            owner[os.path.normpath(site / row[0])] = name
    return owner, versions, closed


def sort_out(files: Files, rules: list[dict]) -> None:
    """Each file by the first rule that names it or a folder above it: dropped, or set aside for images that compile."""
    patterns = [(rule, re.compile("|".join(map(translate, rule["patterns"])))) for rule in rules]
    for path in list(files.sizes):
        if not path.is_relative_to(files.site):
            continue
        inner = path.relative_to(files.site).as_posix()
        rule = next((rule for rule, pattern in patterns if pattern.match(inner)), None)
        if rule:
            (files.set_aside if rule["toolkit"] else files.drop)(path, rule["cause"])


def translate(pattern: str) -> str:
    """A glob as a regular expression that also matches everything below what it names.

    >>> bool(re.match(translate("**/tests"), "numpy/linalg/tests/a.py")), bool(re.match(translate("**/tests"), "a/tests.py"))
    (True, False)
    """
    text = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return f"(?:{text})(?:/.*)?$"


def strip(files: Files) -> None:
    """Drop symbols, but keep the original wherever the result is not a loadable file.

    patchelf moves segments in a way that strip undoes: then a LOAD segment's offset and address no longer agree modulo
    a page, and the loader refuses the file (seen on numpy's OpenBLAS and torchvision's image.so).
    """
    wanted = [p for p in files.sizes if ".so" in p.name and not p.is_symlink() and files.package(p) not in files.closed]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, saved in pool.map(stripped, wanted):
            if saved:
                files.note(path, "symbols", saved)
                files.sizes[path] -= saved


def stripped(path: Path) -> tuple[Path, int]:
    slim = path.with_name(path.name + ".stripped")
    done = subprocess.run(["strip", "--strip-unneeded", "-o", slim, path], capture_output=True, check=False)
    saved = path.stat().st_size - slim.stat().st_size if done.returncode == 0 and slim.exists() else 0
    if saved > 0 and loadable(slim):
        shutil.copymode(path, slim)
        slim.replace(path)
        return path, saved
    slim.unlink(missing_ok=True)
    return path, 0


def loadable(path: Path) -> bool:
    """Whether every LOAD segment of a 64-bit little-endian ELF file has its offset and address agree modulo a page."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        table, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(table)
        entries = file.read(size * count)
    for at in range(0, len(entries), size):
        kind, _, offset, address = struct.unpack_from("<IIQQ", entries, at)
        if kind == PT_LOAD and offset % PAGE != address % PAGE:
            return False
    return True


def link_duplicates(files: Files) -> None:
    """Files with the same bytes and mode become one, under its several names."""
    by_size = collections.defaultdict(list)
    for path, size in files.sizes.items():
        if size >= LINK_BYTES and not path.is_symlink():
            by_size[size, path.stat().st_mode].append(path)
    first: dict[tuple, Path] = {}
    for (size, mode), paths in by_size.items():
        for path in paths if len(paths) > 1 else ():
            with path.open("rb") as file:
                key = (mode, hashlib.file_digest(file, "sha256").digest() if sys.version_info >= (3, 11) else sha256(file))
            if key in first:
                path.unlink()
                os.link(first[key], path)
                files.note(path, "duplicates", size)
                files.sizes[path] = 0
            first.setdefault(key, path)


def sha256(file) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def prune(files: Files, layer: str) -> None:
    """What prune.py beside this file does, in images that name the chips which will run them; elsewhere it is not there."""
    if Path(__file__).with_name("prune.py").exists():  # else a package of that name might answer
        import prune as step

        step.prune(files, layer, OUT)


def split(files: Files, parts: int) -> None:
    """Move every file to /out/N/opt/venv/..., the heaviest first to the lightest part; hard links stay together."""
    groups = collections.defaultdict(list)
    for path in files.sizes:
        groups[path.lstat().st_ino].append(path)
    weighed = sorted(
        ((weight(paths[0]) if parts > 1 else 0, paths) for paths in groups.values()), key=lambda one: (-one[0], one[1])
    )
    loads = [0] * parts
    for size, paths in weighed:
        part = loads.index(min(loads))
        loads[part] += size
        for path in paths:
            move(path, OUT / str(part + 1))
    for name in ("toolkit", *range(1, parts + 1)):  # there for a COPY, even if this layer has none
        (OUT / str(name) / VENV.relative_to("/")).mkdir(parents=True, exist_ok=True)


def for_linkers(site: Path) -> None:
    """For nvcc and the linker: libX.so beside libX.so.N, and lib64, as a toolkit has them and the wheels do not."""
    for part in sorted(OUT.glob("[0-9]*")):
        base = part / site.relative_to("/") / "nvidia"
        for library in sorted(base.glob("cu[0-9]*/lib/lib*.so.*")):
            folder = OUT / "toolkit" / library.parent.relative_to(part)
            folder.mkdir(parents=True, exist_ok=True)
            plain = folder / (library.name.split(".so.")[0] + ".so")
            if not plain.is_symlink():
                plain.symlink_to(library.name)
            wide = folder.with_name("lib64")
            if not wide.is_symlink():
                wide.symlink_to("lib")


def move(path: Path, root: Path) -> None:
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def weight(path: Path) -> int:
    """About what a file weighs compressed, by zlib on 64 KiB of each MiB: GPU code is compressed already, other code is not."""
    if path.is_symlink():
        return 0
    raw = packed = 0
    with path.open("rb") as file:
        for at in range(0, max(1, path.stat().st_size), STRIDE):
            file.seek(at)
            block = file.read(SAMPLE)
            raw, packed = raw + len(block), packed + len(zlib.compress(block, 1))
    return round(path.stat().st_size * packed / raw) if raw else 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
