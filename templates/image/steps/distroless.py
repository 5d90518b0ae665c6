"""distroless.py EPOCH PACKAGE...: into /out, of this system only what Python, the wheels and builder's runtime need to run.

Taken: the interpreter, the sources of its standard library (the bytecode that a start reads is the `pyc` layer's), every
library that these and the PACKAGEs name as needed (ldd), the C++ runtime that wheels expect, certificates, the accounts, the
writable folders. For each Debian package a file came from, its entry of dpkg's status and the checksums of what was taken go to
/var/lib/dpkg/status.d, where scanners of distroless images look.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OUT = Path("/out")
WHEELS_EXPECT = ("libstdc++6", "libgcc-s1", "libc6")  # PEP 600: what a manylinux wheel may use of the system
KEEP = (
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/os-release",
    "/usr/lib/os-release",
)
FOLDERS = ("/home/app", "/home/app/.cache", "/var/lib/builder", "/var/lib/builder/models", "/opt/cache", "/tmp")
UNREAD = re.compile(
    r"/(test|idlelib|tkinter|turtledemo|curses|dbm|pydoc_data|ensurepip|venv|lib2to3|msilib|macholib|__pycache__)(/|$)"
    r"|/(site-packages|dist-packages|config-[^/]+)(/|$)|\.a$"
    r"|/(turtle|crypt|spwd|_pydecimal|_pyio|windows_\w+|popen_spawn_win32)\.py$"
    r"|/lib-dynload/(_test|_ctypes_test|_xx|xx|_curses|_dbm|_gdbm|_tkinter|readline|nis|_crypt|spwd|ossaudiodev)\w*\."
)
"""Of the standard library: what only a terminal, a test run, an installer, a login, a sound card or another system needs, and
the twins in Python of modules that are there compiled. docs/templates.md says why."""
UNREAD_C = re.compile(r"/gconv/|/lib(c_malloc_debug|memusage|pcprofile|thread_db|BrokenLocale|nss_hesiod)\.so")
"""Of the C library: converters of character sets, and what only a debugger, a profiler or an old name service opens."""
LINKS = ("/lib", "/lib64", "/bin", "/sbin")  # of a merged /usr


def main(epoch: int, packages: list[str]) -> None:
    taken: set[Path] = set()
    for link in LINKS:
        if Path(link).is_symlink():
            (OUT / link.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (OUT / link.lstrip("/")).symlink_to(Path(link).readlink())
    python = Path(sys.executable).resolve()
    wanted = [Path("/usr/bin") / python.name, python, Path(sys.executable), *map(Path, KEEP)]
    wanted += files_below(Path(sysconfig.get_path("stdlib")))
    for package in (*packages, *WHEELS_EXPECT):
        wanted += [path for path in owned(package) if re.search(r"\.so(\.|$)", path.name) and not UNREAD_C.search(str(path))]
    for path in wanted:
        take(path, taken)
    for library in needed([path for path in taken if is_elf(path)]):
        take(library, taken)
    for name in FOLDERS:
        source, target = Path(name).stat(), OUT / name.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        os.chown(target, source.st_uid, source.st_gid)
        target.chmod(source.st_mode & 0o7777)
    status(taken)
    for path in [OUT, *OUT.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not UNREAD.search(str(path))]


def take(path: Path, taken: set[Path]) -> None:
    """`path` and, where it is a link, all that it leads to; folders of a merged /usr by their real names."""
    path = Path(os.path.realpath(path.parent)) / path.name
    if path in taken or not os.path.lexists(path):
        return
    taken.add(path)
    target = OUT / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target, follow_symlinks=False)
    if path.is_symlink():
        take(Path(os.path.normpath(path.parent / path.readlink())), taken)


def is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(programs: list[Path]) -> list[Path]:
    """The loader, and every library that the dynamic linker would open for `programs`."""
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return [Path(name) for name in sorted(set(re.findall(r"(?:=> )?(/\S+) \(0x", done.stdout)))]


def owned(package: str) -> list[Path]:
    done = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True, check=False)
    return [Path(line) for line in done.stdout.splitlines() if line.startswith("/") and not Path(line).is_dir()]


def status(taken: set[Path]) -> None:
    real = {str(path) for path in taken}
    folder = OUT / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True)
    for stanza in Path("/var/lib/dpkg/status").read_text().split("\n\n"):
        name = re.match(r"Package: (\S+)", stanza)
        if name and any(real_name(str(path)) in real for path in owned(name[1])):
            (folder / name[1]).write_text(stanza.strip() + "\n")
            (folder / f"{name[1]}.md5sums").write_text(
                "".join(f"{line}\n" for line in sums(name[1]) if real_name("/" + line[34:]) in real)
            )


def sums(package: str) -> list[str]:
    """`md5  path` of the files that a package installed, as dpkg keeps them."""
    info = Path("/var/lib/dpkg/info")
    found = [*info.glob(f"{package}.md5sums"), *info.glob(f"{package}:*.md5sums")]
    return found[0].read_text().splitlines() if found else []


def real_name(path: str) -> str:
    """The path with the folders of a merged /usr by their real names."""
    return os.path.realpath(Path(path).parent) + "/" + Path(path).name


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
