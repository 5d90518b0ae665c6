"""A store in an S3 bucket, on AWS or on a server that speaks S3 (R2, Ceph, MinIO, rclone).

Every PUT carries x-amz-checksum-sha256, so a server that knows it refuses a body that changed on the way; the header is
signed, which binds the body without hashing it again (payload_signing_enabled off). botocore's own checksums stay on for
AWS; elsewhere they are sent and checked only where required, because older servers refuse or drop them (boto3 #4392,
botocore #3352). Chunks never need multipart. `If-None-Match: *` is sent, but a server may ignore it (rclone 1.75 does), so
`put` looks first, unless its caller has.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.auth
from boto3.exceptions import Boto3Error, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.stores.base import Entry, Stored, other_size, too_large
from builder.transfer.checksum import Buffer
from builder.transfer.source import Source, open_source, public

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Where awscrt is installed, botocore signs with it, and copies a bytearray to do so (botocore/crt/auth.py, BytesIO(body)),
# though the payload is not signed: 0.14 s of CPU per GB, and each chunk twice in memory. Its own takes the body as it is.
botocore.auth.AUTH_TYPE_MAPS["s3v4"] = botocore.auth.S3SigV4Auth
ATTEMPTS = 5  # botocore "standard": full jitter, doubling, at most 20 s between two
AGAIN_S, BODY_PAUSE_S = 0.5, 0.1
CONNECT_S, SILENCE_S = 10, 30
# Until the server has answered once: a wrong address shows within 42 s, not after minutes.
FIRST_ATTEMPTS, FIRST_SILENCE_S = 2, 20
CONNECTIONS = 64
CREDENTIALS_S = 60  # obstore keeps them for so long
PART_BYTES, PARTS_AT_ONCE = 64 << 20, 4  # of `upload`: 256 MiB in memory; 10 000 parts of 64 MiB are 640 GB
_ABSENT = ("404", "NoSuchKey", "NotFound")
_THERE = ("PreconditionFailed", "412")  # someone else put the same bytes a moment ago
# ... or is doing so now, or the server does not know the condition: put without it, the bytes are the same.
_CONDITION = (*_THERE, "ConditionalRequestConflict", "409", "NotImplemented", "501")
_REFUSED_BODY = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
# botocore gives up on these. Signed anew, with credentials that are renewed by then, or sent again, they may pass. A HEAD's
# answer has no body, so its code is the bare status.
_AGAIN = ("ExpiredToken", "400", *_REFUSED_BODY)
_STORE_WIDE = frozenset({"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "RequestTimeTooSkewed"})
_NEEDS = "the credentials need s3:ListBucket, s3:GetObject and s3:PutObject on this bucket and prefix"
_FULL = "free space in the bucket, or raise its quota"
_T = TypeVar("_T")
_HINTS = {
    "AccessDenied": _NEEDS,
    "403": _NEEDS,
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID and --endpoint-url",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "log in again; the session token has expired",
    "RequestTimeTooSkewed": "set this machine's clock",
    "NoSuchBucket": "make the bucket, or check its name",
    "PermanentRedirect": "set --region to the bucket's region",
    "301": "set --region to the bucket's region",
    "AuthorizationHeaderMalformed": "set --region to the bucket's region",
    "SlowDown": "lower --concurrency, then run again; what is already there is not sent twice",
    "503": "lower --concurrency, then run again; what is already there is not sent twice",
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
}


class S3Store:
    """One bucket and prefix. One client, shared by all threads."""

    def __init__(
        self, url: str, *, endpoint_url: str | None = None, region: str | None = None, attempts: int = ATTEMPTS
    ) -> None:
        """attempts: per request, the first one counted. Nothing is contacted yet."""
        parts = urlsplit(url)
        if not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigError(f"{public(url)}: expected s3://bucket/prefix", hint="credentials come from the AWS configuration")
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        self.url = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self._session = boto3.Session()
        self.region = region or self._session.region_name or "us-east-1"
        self._client, self.endpoint_url = _client(self._session, endpoint_url, self.region, attempts)
        self._attempts = attempts
        self._answered = False
        self._first = threading.Lock()  # boto3 does not make clients in two threads at once

    def size(self, key: str) -> int | None:
        found = self._head(key, {})
        return None if found is None else found["ContentLength"]

    def stat(self, key: str) -> Stored | None:
        found = self._head(key, {"ChecksumMode": "ENABLED"})
        if found is None:
            return None
        # A composite value ("...-3") is of the parts, not of the object.
        whole = found.get("ChecksumType") != "COMPOSITE"
        return Stored(
            found["ContentLength"],
            _hex(found.get("ChecksumSHA256", "")) if whole else "",
            _hex(found.get("ChecksumCRC64NVME", "")) if whole else "",
        )

    def get(self, key: str, limit: int) -> Buffer | None:
        for tries in range(1, self._attempts + 1):
            with self._faults(key):
                answer = self._open(key)
                if answer is None:
                    return None
                size = answer["ContentLength"]
                with contextlib.closing(answer["Body"]) as body:
                    if size > limit:
                        raise too_large(self.url, key, size, limit)
                    try:
                        found: bytes = body.read()
                        return found
                    except (HTTPClientError, IncompleteReadError):  # in the body, where botocore's own tries have ended
                        if tries == self._attempts:
                            raise
            time.sleep(random.random() * BODY_PAUSE_S * 2**tries)
        raise AssertionError("no try was made")

    def put(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str, absent: bool = False) -> None:
        found = None if absent else self.size(key)
        if found is None:
            self._put(key, data, sha256, {"IfNoneMatch": "*"})
        elif found != len(data):
            raise other_size(self.url, key, found, len(data))

    def replace(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str) -> None:
        self._put(key, data, sha256, {})

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        at_once = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        extra = {} if self.endpoint_url else {"ChecksumAlgorithm": "CRC64NVME"}
        source = _Exactly(file, size, f"{self.url}/{key}")
        with self._faults(key):
            try:
                self._client.upload_fileobj(source, self.bucket, self._key(key), ExtraArgs=extra, Config=at_once)  # type: ignore[arg-type]
            except S3UploadFailedError as exc:
                raise RemoteError(f"{self.url}/{key}: {exc}", where={"key": key}) from exc

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((entry.key, entry.size) for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        cut = len(self.prefix) + 1 if self.prefix else 0
        with self._faults(prefix):
            more: dict[str, Any] = {}
            while True:
                page = self._page(self._key(prefix), more)
                for found in page.get("Contents", []):
                    yield Entry(found["Key"][cut:], found["Size"], found["LastModified"].timestamp())
                if not page.get("IsTruncated"):
                    return
                more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        with self._faults(key):
            self._call(lambda client: client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its address: whoever opens it elsewhere does so with the credentials of that machine."""
        return _opened, (self.url, self.endpoint_url, self.region, self._attempts)

    def source(self) -> Source:
        """Read by transfer, with the credentials that boto3 finds; asked for again every minute, for they may expire."""
        found = self._session.get_credentials()
        if found is None:
            raise _no_credentials(self.url)

        def credentials() -> dict[str, Any]:
            now = found.get_frozen_credentials()  # boto3 renews what is about to expire
            return {
                "access_key_id": now.access_key,
                "secret_access_key": now.secret_key,
                "token": now.token,
                "expires_at": datetime.now(UTC) + timedelta(seconds=CREDENTIALS_S),
            }

        return open_source(self.url, endpoint_url=self.endpoint_url, region=self.region, credentials=credentials)

    def _open(self, key: str) -> Any:
        """The answer whose body is the object, or None where there is none."""
        try:
            return self._call(lambda client: client.get_object(Bucket=self.bucket, Key=self._key(key)))
        except ClientError as exc:
            if _code(exc) in _ABSENT:
                return None
            raise

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, act: Callable[[S3Client], _T]) -> _T:
        """act(client). Until the server has answered once, with less patience for its silence; not for its errors."""
        if self._answered:
            return act(self._client)
        attempts = min(self._attempts, FIRST_ATTEMPTS)
        with self._first:
            hasty, _ = _client(self._session, self.endpoint_url, self.region, attempts, silence_s=FIRST_SILENCE_S)
        try:
            result = act(hasty)
        except ClientError as exc:
            self._answered = True
            if _status(exc) < 500 and _status(exc) != 429:
                raise
            return act(self._client)
        self._answered = True
        return result

    def _page(self, prefix: str, more: dict[str, Any]) -> Any:
        return self._call(lambda client: client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **more))

    def _head(self, key: str, extra: Any) -> Any:
        with self._faults(key):
            try:
                return self._call(lambda client: client.head_object(Bucket=self.bucket, Key=self._key(key), **extra))
            except ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                if _status(exc) < 500:  # without a body; the same as GET says why
                    self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range="bytes=0-0")
                raise

    def _put(self, key: str, data: Buffer, sha256: str, extra: Any) -> None:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        # bytes and bytearray go to the socket as they are; botocore does not take a memoryview.
        body: Any = data if isinstance(data, bytes | bytearray) else bytes(data)
        with self._faults(key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=body, ChecksumSHA256=digest, **extra)
            except ClientError as exc:
                if not extra or _code(exc) not in _CONDITION:
                    raise
                if _code(exc) not in _THERE:
                    self._put(key, data, sha256, {})

    @contextlib.contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, HTTPClientError, Boto3Error) as exc:
            raise self._error(key, exc) from exc

    def _error(self, key: str, exc: Exception) -> BuilderError:
        where: dict[str, Any] = {"key": key, "url": self.url}
        at = f"{self.url}/{key}"
        if isinstance(exc, NoCredentialsError | PartialCredentialsError):
            return _no_credentials(self.url)
        if isinstance(exc, ParamValidationError):
            return ConfigError(f"{self.url}: {exc}", hint="check the store's URL", where=where)
        if isinstance(exc, ClientError):
            code, status = _code(exc), _status(exc)
            where |= {"code": code, "status": status}
            if code in _STORE_WIDE:
                return RemoteError(f"s3://{self.bucket}: {status} {code}", hint=_HINTS[code], where=where)
            if code in _REFUSED_BODY:
                return IntegrityError(f"{at}: the store refused the bytes it received: {code}", hint="run again", where=where)
            said = exc.response.get("Error", {}).get("Message", "")
            what = code if code == str(status) else f"{status} {code}"
            return RemoteError(f"{at}: {what}: {said}", hint=_HINTS.get(code, ""), where=where)
        if isinstance(exc, ConnectionError | HTTPClientError | IncompleteReadError):
            endpoint = self.endpoint_url or "S3"
            return RemoteError(
                f"{at}: {exc}", hint=f"check that {public(endpoint)} can be reached from here, and HTTPS_PROXY", where=where
            )
        return RemoteError(f"{at}: {exc}", where=where)


@functools.lru_cache(maxsize=8)
def _opened(url: str, endpoint_url: str | None, region: str, attempts: int) -> S3Store:
    """One per process: a client costs 50 ms, and its connections are worth keeping."""
    return S3Store(url, endpoint_url=endpoint_url, region=region, attempts=attempts)


class _Exactly:
    """A file that fails where it ends before `size` bytes, and stops there where it is longer."""

    def __init__(self, file: BinaryIO, size: int, at: str) -> None:
        self._file, self._left, self._size, self._at = file, size, size, at

    def read(self, count: int = -1) -> bytes:
        piece = self._file.read(min(count, self._left) if count >= 0 else self._left)
        if not piece and self._left and count:
            done = self._size - self._left
            raise IntegrityError(f"{self._at}: the source ended after {done} of {self._size} bytes")
        self._left -= len(piece)
        return piece


def _client(
    session: boto3.Session, endpoint_url: str | None, region: str, attempts: int, *, silence_s: int = SILENCE_S
) -> tuple[S3Client, str | None]:
    """The client, and its endpoint where that is not AWS. The endpoint may also come from the AWS configuration."""

    def make(*, aws: bool) -> S3Client:
        client: S3Client = session.client(
            "s3", region_name=region, endpoint_url=endpoint_url, config=_config(attempts, silence_s, aws=aws)
        )
        client.meta.events.register("needs-retry.s3", functools.partial(_again, most=attempts))  # type: ignore[arg-type]
        return client

    try:
        client = make(aws=False)
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return make(aws=True), None
        return client, client.meta.endpoint_url
    except (BotoCoreError, ValueError) as exc:
        at = public(endpoint_url) if endpoint_url else "S3"
        raise ConfigError(f"{at}: {exc}", hint="check --endpoint-url and the AWS configuration") from exc


def _again(*, response: Any, attempts: int, most: int, **_: Any) -> float | None:
    """botocore's question whether to try again, asked beside its own rule: seconds to wait, or None for no."""
    code = response[1].get("Error", {}).get("Code", "") if response else ""
    return AGAIN_S if code in _AGAIN and attempts < most else None


def _config(attempts: int, silence_s: int, *, aws: bool) -> Config:
    checksums: Any = "when_supported" if aws else "when_required"
    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=silence_s,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        s3={"addressing_style": "auto" if aws else "path", "payload_signing_enabled": False},
        user_agent_extra="coldstart-builder",
    )


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _hex(encoded: str) -> str:
    """A checksum header's base64 as hex; "" where it is absent or composite."""
    return "" if not encoded or "-" in encoded else base64.b64decode(encoded).hex()


def _no_credentials(url: str) -> RemoteError:
    return RemoteError(
        f"{url}: no AWS credentials", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
    )
