"""Push and pull of one synthetic model, to a folder and to a local S3 server, against unverified copies.

    cp + sync            what a copy costs that checks nothing
    boto3                boto3's managed transfers, upload_file and download_file, 8 threads
    builder              every byte with sha256 and CRC64NVME on push; CRC64NVME, and from S3 sha256, on pull; fsync

The page cache is warm in every run: this measures the work, not the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Run
from builder.stores import rclone
from builder.units import parse_size

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]
UP = """
import boto3, sys, pathlib
from boto3.s3.transfer import TransferConfig
s3 = boto3.client("s3", endpoint_url=sys.argv[1])
for p in pathlib.Path(sys.argv[2]).iterdir():
    s3.upload_file(str(p), "plain", p.name, Config=TransferConfig(max_concurrency=8, multipart_chunksize=16 << 20))
"""
DOWN = """
import boto3, sys, pathlib
from boto3.s3.transfer import TransferConfig
s3 = boto3.client("s3", endpoint_url=sys.argv[1])
for o in s3.list_objects_v2(Bucket="plain")["Contents"]:
    target = str(pathlib.Path(sys.argv[2]) / o["Key"])
    s3.download_file("plain", o["Key"], target, Config=TransferConfig(max_concurrency=8, multipart_chunksize=16 << 20))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"), help="bytes of the model, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="where to work; default: the temporary folder")
    args = parser.parse_args()
    measure.limit_files()
    with tempfile.TemporaryDirectory(prefix="builder-bench-", dir=args.dir) as work:
        sys.stdout.write(report(Path(work), args.size, args.rounds))


def report(work: Path, size: int, count: int) -> str:
    model = work / "model"
    total = make_model(model, size)
    (work / "s3" / "chunks").mkdir(parents=True)
    (work / "s3" / "plain").mkdir()
    with rclone.serve(work / "s3") as s3:
        env = os.environ | s3.env
        tables = [
            folder_push(work, model, env, total, count),
            folder_pull(work, env, total, count),
            s3_push(work, model, env, s3.endpoint_url, total, count),
            s3_pull(work, env, s3.endpoint_url, total, count),
        ]
    head = (
        f"{total / 1e9:.2f} GB in one safetensors model, medians of {count}; ratio: the best peer's time over the tool's.\n\n"
    )
    return head + "\n".join(tables) + f"\n{measure.machine()}\n"


def make_model(folder: Path, size: int) -> int:
    """A LLaMA-shaped model of random bytes, about `size` bytes. Returns its exact size."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.models import safetensors_model

    hidden = 2048
    layer = 2 * (4 * hidden * hidden + 9 * hidden * hidden)
    safetensors_model(folder, layers=max(1, size // layer), hidden=hidden, vocab=4096, shards=4)
    return sum(p.stat().st_size for p in folder.iterdir())


def fresh(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()


def folder_push(work: Path, model: Path, env: dict[str, str], size: int, count: int) -> str:
    def copy() -> Run:
        fresh(work / "copy")
        return measure.run(["sh", "-c", f"cp -r {model} {work}/copy/ && sync -f {work}/copy"], env)

    def push() -> Run:
        fresh(work / "store")
        return measure.run([*BUILDER, "push", str(model), "--store", str(work / "store"), "-q"], env)

    found = measure.rounds({"cp + sync": copy, "builder weights push": push}, count)
    return measure.table("push to a folder", found, size, {"cp + sync"})


def folder_pull(work: Path, env: dict[str, str], size: int, count: int) -> str:
    def copy() -> Run:
        fresh(work / "copy")
        return measure.run(["sh", "-c", f"cp -r {work}/store/chunks {work}/copy/ && sync -f {work}/copy"], env)

    def pull() -> Run:
        shutil.rmtree(work / "pulled", ignore_errors=True)
        return measure.run([*BUILDER, "pull", "--store", str(work / "store"), "--to", str(work / "pulled"), "-q"], env)

    found = measure.rounds({"cp + sync": copy, "builder weights pull": pull}, count)
    return measure.table("pull from a folder", found, size, {"cp + sync"})


def s3_push(work: Path, model: Path, env: dict[str, str], url: str, size: int, count: int) -> str:
    def boto() -> Run:
        fresh(work / "s3" / "plain")
        return measure.run([sys.executable, "-c", UP, url, str(model)], env)

    def push() -> Run:
        fresh(work / "s3" / "chunks")
        return measure.run([*BUILDER, "push", str(model), *_s3(url), "-q"], env)

    found = measure.rounds({"boto3 upload_file": boto, "builder weights push": push}, count)
    return measure.table("push to S3 (rclone on this machine)", found, size, {"boto3 upload_file"})


def s3_pull(work: Path, env: dict[str, str], url: str, size: int, count: int) -> str:
    def boto() -> Run:
        fresh(work / "copy")
        return measure.run([sys.executable, "-c", DOWN, url, str(work / "copy")], env)

    def pull() -> Run:
        shutil.rmtree(work / "pulled", ignore_errors=True)
        return measure.run([*BUILDER, "pull", *_s3(url), "--to", str(work / "pulled"), "-q"], env)

    tools: dict[str, Callable[[], Run]] = {"boto3 download_file": boto, "builder weights pull": pull}
    return measure.table("pull from S3 (rclone on this machine)", measure.rounds(tools, count), size, {"boto3 download_file"})


def _s3(url: str) -> list[str]:
    return ["--store", "s3://chunks/m", "--endpoint-url", url]
