"""The node cache on real mounts: a read-only mount of the same root, and a disk that is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.transfer.cache import Budget, Held, ensure, listing, prune
from builder.transfer.restore import restore
from tests.bounds import BOUND_S
from tests.integration.kernel.test_full_disk import fill, mounted
from tests.unit.transfer.build import DictSource, Model, random_model

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("loop_root")]

HOLD = """
import sys
from pathlib import Path
from builder.transfer.lease import hold
lease = hold(Path(sys.argv[1]))
print(lease.fd is not None, flush=True)
sys.stdin.read()
"""


def get(model: Model, root: Path, budget: Budget | None = None) -> Held:
    return ensure(model.manifest, root, lambda to: restore(model.manifest, DictSource(model.objects), to), budget=budget)


def a_model(seed: int) -> Model:
    return random_model(files=1, size=3 << 20, chunk_bytes=1 << 20, seed=seed)


def test_who_sees_the_root_read_only_in_a_mount_namespace_of_his_own_is_a_user_too(tmp_path: Path) -> None:
    """As two containers with one hostPath: locks are the kernel's, not the mount's."""
    root, seen = tmp_path / "root", tmp_path / "seen"
    seen.mkdir()
    held = get(a_model(0), root)
    held.lease.release()
    script = f"mount --bind {root} {seen} && mount -o remount,bind,ro {seen} && exec {sys.executable} -c '{HOLD}' {seen}/$1"
    command = ["unshare", "-m", "sh", "-ec", script, "sh", held.folder.name]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert user.stdout
        assert user.stdout.readline() == b"True\n"
        assert prune(root, 0) == []
        assert [e.in_use for e in listing(root)] == [True]
    finally:
        user.kill()
        user.communicate(timeout=BOUND_S)
    assert [e.folder for e in prune(root, 0)] == [held.folder]


def test_a_read_only_root_is_used_and_listed_without_a_word(tmp_path: Path) -> None:
    root, model = tmp_path / "root", a_model(0)
    baked = root / model.manifest.digest.removeprefix("sha256:")
    restore(model.manifest, DictSource(model.objects), baked)
    with mounted(["-o", "bind,ro", str(root)], tmp_path / "seen") as seen:
        with get(model, seen, Budget(1)) as held:
            assert (held.lease.fd, held.report.fetched_bytes) == (None, 0)
        assert [(e.complete, e.kept, e.in_use) for e in listing(seen)] == [(True, True, False)]
    assert [p.name for p in root.iterdir()] == [baked.name]


def test_on_a_full_disk_what_is_not_in_use_makes_room(tmp_path: Path) -> None:
    """10 MiB hold two models of 3 MiB and their spare room; the budget alone would allow more."""
    one, two, three = a_model(1), a_model(2), a_model(3)
    with mounted(["-t", "tmpfs", "-o", "size=10m,mode=755", "tmpfs"], tmp_path / "disk") as disk:
        root, budget = disk / "models", Budget(1 << 40)
        get(one, root, budget).lease.release()
        used = get(two, root, budget)
        filler = fill(disk)
        with pytest.raises(CapabilityError, match="bytes needed"):
            get(three, root)
        filler.unlink()
        with get(three, root, budget) as held:
            assert three.same(held.folder)
            assert two.same(used.folder)
            assert {e.digest for e in listing(root)} == {two.manifest.digest, three.manifest.digest}
            with pytest.raises(CapabilityError, match="0 of them not in use"):
                get(one, root, budget)
        used.lease.release()
