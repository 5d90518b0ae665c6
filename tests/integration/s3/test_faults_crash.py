"""kill -9 of the commands at seeded points of their traffic with a real S3 server: the next run completes.

The proxy kills the process when its n-th request arrives, and passes that request on or drops it: so every point between
two requests can be hit, those around manifest and ref too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from builder.format.volume import partial_dir
from builder.stores.s3 import S3Store
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.integration.s3.faulty import at, command, good, objects, push_small, same, visible, wrong_chunks
from tests.models import safetensors_model
from tests.servers.proxy import Asked, FaultProxy

pytestmark = pytest.mark.s3


class Killer:
    """Runs commands, each killed at its n-th request that counts.  drop: that request does not reach the server."""

    def __init__(self, proxy: FaultProxy, method: str = "", only: str = "") -> None:
        self.method, self.only = method, only
        self.left, self.drop = 0, False
        self.process: subprocess.Popen[bytes] | None = None
        proxy.plan, proxy.done = self.plan, self.kill

    def plan(self, asked: Asked) -> str:
        self.left -= self.only in asked.key and (not self.method or asked.method == self.method)
        if self.left != 0:
            return ""
        self.left = -1
        if self.drop:
            self.kill()
        return "hangup" if self.drop else "hangup-after"

    def kill(self) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)

    def run(self, *args: str | Path, nth: int, drop: bool) -> bool:
        """Whether it was killed, rather than having ended before."""
        self.left, self.drop = nth, drop
        self.process = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = self.process.communicate(timeout=BOUND_S)
        self.left = -1
        assert self.process.returncode in (0, -signal.SIGKILL), said.decode()
        return self.process.returncode != 0


def test_push_killed_at_any_request_is_completed_by_the_next_one(s3: S3, tmp_path: Path) -> None:
    model = safetensors_model(tmp_path / "model", layers=2, hidden=512, vocab=6000, shards=2)
    args = ("push", model, "--name", "m", "--chunk-size", "8MiB", "--concurrency", "2")
    draw, killed = random.Random(11), 0
    with FaultProxy(s3.endpoint_url) as proxy:
        killer = Killer(proxy)
        for nth in [3, 6, *(draw.randrange(2, 12) for _ in range(3))]:
            killed += killer.run(*args, *at(s3, proxy), nth=nth, drop=draw.random() < 0.5)
            assert wrong_chunks(s3) == []
            assert not objects(s3, "refs") or objects(s3, "manifests"), "the manifest comes before the ref"
        assert killed >= 4
        killer.left = -1
        report = good(*args, *at(s3, proxy))
    assert wrong_chunks(s3) == []
    assert report["sent_chunks"] < report["chunks"], "what the killed ones had sent was kept"
    good("pull", "m", "--to", tmp_path / "out", *at(s3))
    assert same(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["manifests", "refs"])
@pytest.mark.parametrize("drop", [True, False])
def test_push_killed_at_its_last_requests_shows_the_old_model_or_the_new_one(
    s3: S3, tmp_path: Path, kind: str, drop: bool
) -> None:
    old, new = (safetensors_model(tmp_path / name, layers=1, seed=n) for n, name in enumerate(("old", "new")))
    good("push", old, "--name", "m", *at(s3))
    with FaultProxy(s3.endpoint_url) as proxy:
        killer = Killer(proxy, "PUT", f"/{kind}/")
        assert killer.run("push", new, "--name", "m", *at(s3, proxy), nth=1, drop=drop)
    good("pull", "m", "--to", tmp_path / "between", *at(s3))
    moved = kind == "refs" and not drop
    assert same(new if moved else old, tmp_path / "between")
    assert good("push", new, "--name", "m", *at(s3))["sent_chunks"] == 0
    good("pull", "m", "--to", tmp_path / "after", *at(s3))
    assert same(new, tmp_path / "after")


def test_pull_killed_at_any_request_is_completed_by_the_next_one(s3: S3, tmp_path: Path) -> None:
    model = safetensors_model(tmp_path / "model", layers=3, hidden=160, vocab=1600, shards=2)
    chunks = push_small(model, S3Store(s3.url, endpoint_url=s3.endpoint_url)).chunks
    out, draw, killed = tmp_path / "out", random.Random(12), 0
    with FaultProxy(s3.endpoint_url) as proxy:
        killer = Killer(proxy)
        args: tuple[str | Path, ...] = ("pull", "m", "--to", out, "--concurrency", "4", *at(s3, proxy))
        for nth in [1, 2, *(draw.randrange(3, chunks // 3) for _ in range(4))]:
            killed += killer.run(*args, nth=nth, drop=draw.random() < 0.5)
            assert not out.exists() or same(model, out)
        assert killed >= 4
        good(*args)
        asked = proxy.count("GET", "/chunks/")
    assert asked <= chunks + 2 * 4 * killed, "only what was in flight, or not yet in the journal, is fetched again"
    assert same(model, out)
    assert not partial_dir(out).exists()


def test_nothing_of_a_killed_first_push_is_visible(s3: S3, tmp_path: Path) -> None:
    model = safetensors_model(tmp_path / "model", layers=1)
    with FaultProxy(s3.endpoint_url) as proxy:
        killer = Killer(proxy, only="/manifests/")
        assert killer.run("push", model, "--name", "m", *at(s3, proxy), nth=1, drop=True)
    assert visible(s3) == []
    assert good("ls", *at(s3))["models"] == []
