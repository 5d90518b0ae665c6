"""`builder bake verify`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli.bake.evidence import Ask, arguments, evidence, verified
from builder.cli.common import Session, options
from builder.errors import ConfigError
from builder.node.targets import TARGETS

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("verify")
@click.argument("image", type=click.Path(path_type=Path), metavar="DISK")
@options
@click.option("--run", "run", default=None, metavar="ARGS", help="Arguments for the image's entry point. Default: --help.")
@click.option(
    "--timeout",
    default=None,
    metavar="TIME",
    help="What each container may take; in the virtual machine at least 5min. Default: 2min.",
)
@click.option("--target", type=click.Choice(sorted(TARGETS)), default=None,
              help="What the disk should be for. Default: as its build record says.")  # fmt: skip
@click.option("--containerd", "containerds", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
              help="A containerd that must start the images, or its folder. Repeatable. Default: this machine's.")  # fmt: skip
@click.option("--vm", is_flag=True, help="Also boot the disk in a virtual machine, which finds it as a node would (QEMU).")
@click.option(
    "--kernel", type=FILE, default=None, metavar="FILE", help="Kernel of the virtual machine. Default: the newest here."
)
@click.option(
    "--selinux", is_flag=True, help="The virtual machine enforces a policy with the rules that matter on Bottlerocket."
)
@click.option("--console", type=FILE, default=None, metavar="FILE", help="Keep what the virtual machine said.")
def command(session: Session, image: Path, run: str | None, timeout: str | None, target: str | None,
            containerds: tuple[Path, ...], vm: bool, kernel: Path | None, selinux: bool,
            console: Path | None) -> None:  # fmt: skip
    """Prove that a copy of DISK starts its images with no pull; exit 7 with every finding if not.

    The images are asked for, and started, as kubelet does it: through the interface of a second containerd, which has no
    network. DISK itself is only read.
    """
    if (kernel or selinux or console) and not vm:
        raise ConfigError("--kernel, --selinux and --console are of the virtual machine", hint="add --vm")
    if console and not console.absolute().parent.is_dir():
        raise ConfigError(f"{console.parent}: no such folder", hint=f"mkdir -p {console.parent}")
    ask = Ask(arguments(run), _seconds(timeout), target or "", containerds, vm, kernel, selinux, console)
    report = verified(session, image, ask)
    session.show(report.to_json(), evidence(report))


def _seconds(text: str | None) -> float | None:
    from builder.units import parse_seconds

    try:
        return parse_seconds(text) if text else None
    except ValueError as exc:
        raise ConfigError(f"--timeout: {exc}") from exc
