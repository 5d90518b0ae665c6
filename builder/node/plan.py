"""What to bake, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from builder import units
from builder.errors import ConfigError
from builder.format.volume import marker_digest
from builder.node import disk
from builder.node.images import Opened
from builder.node.inputs import CompiledInput, ImageInput, WeightsInput
from builder.node.lent import lends
from builder.node.programs import Programs
from builder.node.targets import BOTTLEROCKET, Target

DEFAULT_SIZE = 120 * disk.GIB
UNPACKED_RATIO = 2.6  # unpacked bytes per compressed byte, as Debian's base layers have; CUDA libraries have less
_SEPARATORS = set(":,\\")  # of mount options and lower folders; the layers are unpacked below OUT.tree
SPARE = 256 << 20  # file system metadata, journal, containerd's database


@dataclass(frozen=True, slots=True)
class BakePlan:
    """What to make. size: bytes of the disk, whole GiB.

    platform: of every image, such as linux/arm64; "" is this machine's. loop: False builds ext4 without loop devices.
    programs: the containerd to bake with; None finds one. keep_blobs: the compressed layers stay. trim: what was deleted is
    punched out of the file. archive: also the form that the cloud's image import takes, where it is not the disk itself.
    """

    out: Path
    images: tuple[ImageInput, ...] = ()
    weights: tuple[WeightsInput, ...] = ()
    size: int = DEFAULT_SIZE
    platform: str = ""
    loop: bool = True
    force: bool = False
    target: Target = BOTTLEROCKET
    programs: Programs | None = None
    compiled: tuple[CompiledInput, ...] = ()
    keep_blobs: bool = False
    trim: bool = True
    archive: bool = False

    @property
    def filesystem(self) -> str:
        return self.target.filesystem if self.loop else "ext4"

    @property
    def partial(self) -> Path:
        """Where the disk grows. Absolute, so that a program of a killed bake is known by its command line."""
        return beside(self.out.absolute(), ".partial")

    @property
    def tree(self) -> Path | None:
        """The folder that becomes the file system where there are no loop devices."""
        return None if self.loop else beside(self.out.absolute(), ".tree")

    @property
    def exports(self) -> tuple[str, ...]:
        """Suffixes of the further forms of the disk that are wanted. Azure takes nothing but a VHD, so that is always made."""
        return tuple(form for form in self.target.exports if self.archive or form == ".vhd")


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def check(plan: BakePlan) -> None:
    """Raises ConfigError for a plan that cannot work."""
    check_early(plan)
    if not (plan.images or plan.weights or plan.compiled):
        raise ConfigError("nothing to bake", hint="name an image with --image or --oci, or weights with --weights")
    if not (plan.target.containerd_root or plan.images):
        raise _images_alone(plan)


def check_early(plan: BakePlan) -> None:
    """As `check`, without a look at the images: to be asked before they are fetched, which may take long."""
    if plan.size % disk.GIB or plan.size < disk.MIN_SIZE:
        raise ConfigError(
            f"size of {plan.size} bytes; expected whole GiB, at least 1", hint="volumes come in whole GiB: --size 120GiB"
        )
    check_places(plan)
    if plan.archive and not plan.target.exports:
        raise ConfigError(
            f"target {plan.target.name} has no archive form", hint="its disk is what is uploaded; leave out --archive"
        )
    if not plan.target.containerd_root and (plan.weights or plan.compiled or plan.keep_blobs):
        raise _images_alone(plan)
    for one in plan.weights:
        if one.folder and not marker_digest(one.folder):
            raise ConfigError(f"{one.folder}: not a restored model: no .builder/complete in it",
                              hint=f"builder weights pull --store URL --to {one.folder}")  # fmt: skip


def check_places(plan: BakePlan) -> None:
    """Raises ConfigError if what is to be written is there, or cannot be."""
    if not plan.out.parent.is_dir():
        raise ConfigError(f"{plan.out.parent}: no such folder")
    for path in (plan.out, *(beside(plan.out, form) for form in plan.target.exports)):
        if path.exists() and not path.is_file():  # a device: what replaces its node would be a file, and the device untouched
            raise ConfigError(f"{path}: not a file; a disk is baked as one, and then written onto a device",
                              hint="name a new file; docs/bake-specs.md says how it gets to a cloud")  # fmt: skip
        if path.exists() and not plan.force:
            raise ConfigError(f"{path}: already there", hint="--force replaces it")
    if plan.tree and set(str(plan.tree)) & _SEPARATORS:
        raise ConfigError(f"{plan.tree}: overlayfs takes no path with a colon, a comma or a backslash",
                          hint="bake to another folder, or without --no-loop")  # fmt: skip


def _images_alone(plan: BakePlan) -> ConfigError:
    return ConfigError(f"target {plan.target.name} holds unpacked images and nothing else",
                       hint="leave out weights, compile caches and --keep-blobs; stream weights from the store")  # fmt: skip


def estimate(plan: BakePlan, opened: Iterable[Opened]) -> int:
    """Bytes that the work may occupy at its height: compressed layers that are copied, unpacked ones, weights, metadata.

    Raises ConfigError if the disk is certainly too small, even for layers that do not grow when unpacked.
    """
    layers = {layer.digest: (one.layout, layer) for one in opened for layer in one.image.layers}  # images share layers
    compressed, rest = sum(layer.size for _, layer in layers.values()), SPARE + local_bytes(plan)
    stored = sum(layer.size for layout, layer in layers.values() if not lends(layout, layer, keep_blobs=plan.keep_blobs))
    if stored + compressed + rest > plan.size:
        said = f"a disk of {units.format_size(plan.size)} for at least {units.format_size(stored + compressed + rest)}"
        raise ConfigError(said, hint="choose a larger --size")
    need = stored + round(compressed * UNPACKED_RATIO) + rest
    copies = (1 if plan.loop else 2) + len(plan.exports)  # the tree and the disk made from it are there together
    return copies * need


def local_bytes(plan: BakePlan) -> int:
    """Bytes of the folders that are to be copied onto the disk."""
    folders = [one.folder for one in (*plan.weights, *plan.compiled) if one.folder]
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
