"""What the fault tests share: the commands as a user runs them, and what must hold after each of them."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from builder.engines.local import LocalEngine
from builder.models.resolve import resolve
from builder.models.source import ModelRef
from builder.stores.base import Store
from builder.stores.directory import INCOMING
from builder.weights import push, split
from builder.weights.push import PushReport
from tests.bounds import BOUND_S
from tests.conftest import S3
from tests.servers.proxy import Asked, FaultProxy, Plan

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


@dataclass(frozen=True)
class Ended:
    """How a command ended. data: what it printed as JSON."""

    code: int
    data: dict[str, Any]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.data["error"]
        return found


def command(*args: str | Path) -> list[str]:
    return [*BUILDER, *map(str, args), "--format", "json", "-q"]


def start(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    environ = {**os.environ, **(env or {})}
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Its end, which comes in bounded time, and is no crash."""
    try:
        out, err = process.communicate(timeout=BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert b"Traceback" not in err, err.decode()
    assert out, err.decode()
    return Ended(process.returncode, json.loads(out))


def cli(*args: str | Path, env: dict[str, str] | None = None) -> Ended:
    return finish(start(*args, env=env))


def good(*args: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The result of a command that must succeed."""
    ended = cli(*args, env=env)
    assert ended.code == 0, ended.data
    return ended.data


def at(s3: S3, proxy: FaultProxy | None = None) -> list[str]:
    """The options that name the store, through the proxy or past it."""
    return ["--store", s3.url, "--endpoint-url", proxy.endpoint_url if proxy else s3.endpoint_url]


def objects(s3: S3, prefix: str) -> list[Path]:
    """Raw objects below a prefix, as files; what rclone has not finished writing is none."""
    return sorted(
        p for p in (s3.folder / s3.bucket / prefix).rglob("*") if p.is_file() and not p.name.startswith(".rclone_temp_")
    )


def lay(s3: S3, stored: Path) -> None:
    """A store that was made in a folder, as the bucket's objects: the keys are the same, and a push takes a second."""
    shutil.copytree(stored, s3.folder / s3.bucket, dirs_exist_ok=True, ignore=shutil.ignore_patterns(INCOMING))


def push_small(model: Path, store: Store, *, name: str = "m") -> PushReport:
    """In chunks of 16 KiB, which the command does not make."""
    plan = split.plan(resolve(ModelRef(str(model))), chunk_bytes=16 << 10)
    return push.push(plan, store, LocalEngine(4), name=name)


def wrong_chunks(s3: S3) -> list[str]:
    """Names of the stored chunks that do not hash to their name."""
    return [p.name for p in objects(s3, "chunks") if hashlib.sha256(p.read_bytes()).hexdigest() != p.name]


def visible(s3: S3) -> list[str]:
    """What a reader of the store sees of models."""
    return [p.name for kind in ("refs", "manifests") for p in objects(s3, kind)]


def same(model: Path, folder: Path) -> bool:
    """The restored folder has the model's files, byte for byte, and no other but the record of them."""
    names = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    found = {name for name in found if not name.startswith(".builder/")}
    return names == found and all(filecmp.cmp(model / n, folder / n, shallow=False) for n in names)


class Helper:
    """The user's credential_process: prints what stands in a file, which changes when the first credentials expire."""

    def __init__(self, s3: S3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.s3, self.file = s3, folder / "credentials.json"
        self.now = 0
        self.renew(0)
        config = folder / "aws.conf"
        config.write_text(f"[default]\ncredential_process = cat {self.file}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    def token(self, n: int) -> str:
        return f"session-{n}"

    def renew(self, n: int) -> None:
        """From now on it prints the n-th credentials; they say that they end soon, so that clients ask again."""
        end = datetime.now(UTC) + timedelta(minutes=5)
        value = {
            "Version": 1,
            "AccessKeyId": self.s3.env["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": self.s3.env["AWS_SECRET_ACCESS_KEY"],
            "SessionToken": self.token(n),
            "Expiration": end.isoformat(),
        }
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(value))
        new.rename(self.file)
        self.now = n

    def plan(self, after: int) -> Plan:
        """The first credentials end after so many requests; the second ones are there by then."""

        def plan(asked: Asked) -> str:
            if asked.total == after:
                self.renew(1)
            return "expired" if asked.token != self.token(self.now) else ""

        return plan
