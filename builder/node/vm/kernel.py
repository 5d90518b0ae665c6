"""A Linux kernel to boot, and those of its modules that the machine needs.

A kernel is usable if the folder of its modules is found and holds, or has built in, what reads the disk and runs a
container. `scripts/kernel` fetches Debian's cloud kernel into ~/.cache/builder/kernel without installing it.
"""

from __future__ import annotations

import gzip
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import CapabilityError, ConfigError

CACHE = Path("~/.cache/builder/kernel")
HINT = "scripts/kernel fetches one (Debian), or name a bzImage with --kernel; its modules in lib/modules/VERSION beside it"
# What the machine uses; its init mounts with them. xfs needs crc32c by name, which no dependency says.
NEEDED = ("virtio_pci", "virtio_blk", "ext4", "xfs", "overlay")
WISHED = ("crc32c_generic", "crc32c")


@dataclass(frozen=True, slots=True)
class Kernel:
    """image: the bzImage. version: as `uname -r` says. modules: files to load, each after those it depends on."""

    image: Path
    version: str
    modules: tuple[Path, ...]


def find(asked: Path | None = None, *, places: tuple[Path, ...] | None = None) -> Kernel:
    """The kernel `asked`, or the newest usable one in /boot, /lib/modules and the cache.

    Raises ConfigError if `asked` is no x86 kernel, CapabilityError if it lacks modules or no usable one is there.
    """
    if asked is not None:
        return usable(asked)
    faults = []
    for image in candidates(places or (Path("/boot"), Path("/lib/modules"), CACHE.expanduser())):
        try:
            return usable(image)
        except (ConfigError, CapabilityError) as exc:
            faults.append(exc.message)
    said = "".join(f"\n  {fault}" for fault in faults)
    raise CapabilityError(f"no kernel to boot in a virtual machine{':' if said else ''}{said}", hint=HINT)


def candidates(places: tuple[Path, ...]) -> list[Path]:
    """Kernel images in the folders, the newest version first."""
    patterns = ("vmlinuz-*", "*/vmlinuz", "boot/vmlinuz-*", "*/boot/vmlinuz-*")
    found = {path for place in places for pattern in patterns for path in place.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: (_numbers(path), str(path)), reverse=True)


def usable(image: Path) -> Kernel:
    """The kernel with its modules. Raises ConfigError, CapabilityError; see `find`."""
    release = version(image)
    tried = [*(above / "lib" / "modules" / release for above in image.absolute().parents[:3]), image.absolute().parent,
             Path("/lib/modules", release), Path("/usr/lib/modules", release)]  # fmt: skip
    for folder in tried:
        if (folder / "modules.builtin").is_file():
            return Kernel(image, release, load_order(folder))
    raise CapabilityError(f"{image}: no modules of {release}, expected in {tried[0]} or {tried[-2]}", hint=HINT)


def version(image: Path) -> str:
    """`uname -r` of an x86 kernel, out of its header: a pointer at 0x20e, counted from 0x200.

    Source: Linux Documentation/arch/x86/boot.rst, kernel_version.
    """
    try:
        with image.open("rb") as raw:
            head = raw.read(0x10000)
    except OSError as exc:
        raise ConfigError(f"{image}: {exc.strerror}", hint=HINT) from exc
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    words = head[at : at + 200].split(b"\0")[0].split()
    if head[0x202:0x206] != b"HdrS" or at == 0x200 or not words:
        raise ConfigError(f"{image}: not an x86 kernel (bzImage)", hint=HINT)
    return words[0].decode("ascii", "replace")


def load_order(folder: Path) -> tuple[Path, ...]:
    """Files of the modules to load, dependencies first. folder: lib/modules/VERSION.

    The dependencies are read out of the modules, since modules.dep is only there where the kernel was installed.
    Raises CapabilityError if one is neither there nor built in.
    """
    builtin = {_name(Path(line)) for line in (folder / "modules.builtin").read_text().split()}
    files = {_name(path): path for path in sorted(folder.rglob("*.ko*"))}
    order: dict[str, Path] = {}

    def add(name: str, by: str) -> None:
        if name in builtin or name in order:
            return
        if name not in files:
            raise CapabilityError(f"{folder}: no module {name}{f', which {by} needs' if by else ''}", hint=HINT)
        for other in depends(read(files[name])):
            add(other, name)
        order[name] = files[name]

    for name in (*(name for name in WISHED if name in files), *NEEDED):
        add(name, "")
    return tuple(order.values())


def depends(module: bytes) -> list[str]:
    """Names of the modules that must be there first, out of the .modinfo section of the plain module."""
    match = re.search(rb"\0depends=([a-zA-Z0-9_,-]*)\0", module)
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []


def read(path: Path) -> bytes:
    """The module, unpacked: distributions compress modules with xz or zstd."""
    if path.suffix == ".zst":
        return process.run([process.need("zstd"), "--decompress", "--stdout", "--quiet", path]).stdout
    body = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(body)
        if path.suffix == ".gz":
            return gzip.decompress(body)
    except (lzma.LZMAError, OSError, EOFError) as exc:
        raise CapabilityError(f"{path}: cannot be unpacked: {exc}", hint=HINT) from exc
    return body


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _numbers(image: Path) -> list[int]:
    """For sorting by version: 6.1.0-9 comes before 6.1.0-56."""
    named = image.parent.name if image.name == "vmlinuz" else image.name
    return [int(part) for part in re.findall(r"\d+", named)]
