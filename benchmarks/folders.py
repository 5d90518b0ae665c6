"""Push to and pull from a store that is a folder, beside copies of files: cp, and the hub client out of its own cache."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import limits, measure
from benchmarks.measure import Command, Run
from benchmarks.peers import BUILDER
from benchmarks.site import empty, make_model, same
from benchmarks.tables import compared
from tests.servers.hub import REPO, HubServer

_HUB = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], endpoint=sys.argv[2], cache_dir=sys.argv[3], local_dir=sys.argv[4] or None)
"""


def tables(work: Path, size: int, count: int) -> Iterator[str]:
    """All below `work`, page cache warm, every target synced within the time."""
    model, out, store, filled = work / "model", work / "out", work / "store", work / "filled"
    try:
        total = make_model(model, size)
        with HubServer(model) as hub:
            env = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}

            def hub_command(target: str) -> Command:
                return Command([sys.executable, "-c", _HUB, REPO, hub.endpoint, str(work / "cache"), target], env, work)

            def into(folder: Path, command: Command) -> Run:
                empty(folder)
                measure.syncfs(work)
                return measure.run(command)

            def pull(command: Command) -> Run:
                done = into(out, command)
                same(model, out)
                return done

            copy = Command(["cp", "-r", f"{model}/.", str(out)], os.environ, work)
            raw = limits.copy(model, out)
            push = Command([*BUILDER, "push", str(model), "--name", "m", "--store", str(store), "-q"], os.environ, work)
            measure.run(Command([*BUILDER, "push", str(model), "--name", "m", "--store", str(filled), "-q"], os.environ))
            measure.run(hub_command(""))  # fills the cache
            fetch = Command([*BUILDER, "pull", "m", "--store", str(filled), "--to", str(out), "-q"], os.environ, work)
            found, failed = measure.rounds(
                {
                    "builder": lambda: into(store, push),
                    "cp": lambda: into(out, copy),
                    "*dd, read and write*": lambda: into(out, raw),
                },
                count,
            )
            yield compared("push to a folder, warm", found, total, peers={"cp"}, limit="*dd, read and write*", absent=failed)
            found, failed = measure.rounds(
                {
                    "builder": lambda: pull(fetch),
                    "hub client, from its cache": lambda: pull(hub_command(str(out))),
                    "cp": lambda: pull(copy),
                    "*dd, read and write*": lambda: pull(raw),
                },
                count,
            )
            peers = {"cp", "hub client, from its cache"}
            yield compared("pull from a folder, warm", found, total, peers=peers, limit="*dd, read and write*", absent=failed)
    finally:
        shutil.rmtree(work, ignore_errors=True)
