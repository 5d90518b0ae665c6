"""A disk whose blocks take time when they are first touched, as those of a volume made from a snapshot do.

`python -m benchmarks.lazy DISK FOLDER --first-ms 100 --at-once 64` shows DISK as FOLDER/disk until FOLDER is unmounted, by
the kernel's own FUSE protocol. The first read or write of a block of 512 KiB sleeps, at most --at-once blocks at the same time;
later ones cost nothing. Blocks of zeros are free from the start, as they are not in a snapshot. Writes go to the file.

This models a volume; it is none. 100 ms: users see about 5 MiB/s on first touch (bottlerocket-images-cache issue 13), which is
ten blocks a second, one after the other. 64: AWS caps a provisioned rate at 300 MiB/s (EBS user guide, "Initialize Amazon EBS
volumes"), 600 blocks a second of 100 ms each.
Protocol: the kernel's include/uapi/linux/fuse.h, version 7.31.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from builder.node import blocks
from builder.node.blocks import BLOCK

FIRST_MS, AT_ONCE = 100.0, 64
NAME = b"disk"
_BUFFER = (1 << 20) + 4096
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR = 18, 20, 25, 26, 27, 29
_INTERRUPT, _BATCH_FORGET = 36, 42
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
_DIRECT_IO = 1
_SILENT = {_FORGET, _BATCH_FORGET, _INTERRUPT}
_EMPTY = {_RELEASE, _FSYNC, _FLUSH, _RELEASEDIR, _SETATTR}


class LazyDisk:
    """The file, and which of its blocks have been touched. first_s: seconds of a first touch."""

    def __init__(self, path: Path, first_s: float, at_once: int) -> None:
        self.size = path.stat().st_size
        self.fd = os.open(path, os.O_RDWR)
        self.first_s = first_s
        self._slots = threading.BoundedSemaphore(at_once)
        self._cold = set(blocks.scan(path).blocks)
        self._loading: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(at_once + 8)

    def read(self, offset: int, size: int) -> bytes:
        self._touch(offset, size)
        return os.pread(self.fd, size, offset)

    def write(self, offset: int, body: bytes) -> int:
        self._touch(offset, len(body))
        return os.pwrite(self.fd, body, offset)

    def _touch(self, offset: int, size: int) -> None:
        waits = [self._ask(index) for index in range(offset // BLOCK, (offset + max(1, size) - 1) // BLOCK + 1)]
        for wait in waits:
            if wait:
                wait.result()

    def _ask(self, index: int) -> Future[None] | None:
        with self._lock:
            if index in self._loading:
                return self._loading[index]
            if index not in self._cold:
                return None
            self._cold.discard(index)
            self._loading[index] = self._pool.submit(self._load, index)
            return self._loading[index]

    def _load(self, index: int) -> None:
        with self._slots:
            time.sleep(self.first_s)
        with self._lock:
            self._loading.pop(index, None)


class Server:
    """Answers the kernel until the folder is unmounted."""

    def __init__(self, disk: LazyDisk, folder: Path) -> None:
        self.disk = disk
        self.channel = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.channel},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={1 << 20}"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"builder-lazy", os.fsencode(folder), b"fuse", 6, options.encode()):  # MS_NOSUID | MS_NODEV
            raise OSError(ctypes.get_errno(), "mount", str(folder))
        self._pool = ThreadPoolExecutor(96)

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.channel, _BUFFER)
            except OSError as exc:
                if exc.errno == errno.ENODEV:  # unmounted
                    return
                if exc.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code not in _SILENT:
                self._pool.submit(self._answer, code, unique, node, request[_IN.size :])

    def _answer(self, code: int, unique: int, node: int, body: bytes) -> None:
        try:
            said, wrong = self._reply(code, node, body), 0
        except OSError as exc:
            said, wrong = b"", -(exc.errno or errno.EIO)
        with contextlib.suppress(OSError):  # interrupted, or unmounted meanwhile
            os.write(self.channel, _OUT.pack(_OUT.size + len(said), wrong, unique) + said)

    def _reply(self, code: int, node: int, body: bytes) -> bytes:
        if code == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.disk.read(offset, size)
        if code == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", self.disk.write(offset, body[40 : 40 + size]), 0)
        if code == _INIT:
            flags = struct.unpack_from("<IIII", body)[3] & (_ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES)
            return struct.pack("<IIIIHHIIHH8I", 7, 31, 1 << 17, flags, 128, 96, 1 << 20, 1, 256, 0, *[0] * 8)
        if code == _LOOKUP:
            if body.rstrip(b"\0") != NAME:
                raise OSError(errno.ENOENT, "lookup")
            return struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self._attributes(2)
        if code in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if code in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 1, _DIRECT_IO if code == _OPEN else 0, 0)
        if code in _EMPTY:
            return b""
        raise OSError(errno.ENOSYS, "not served")

    def _attributes(self, node: int) -> bytes:
        file = node == 2
        mode = stat.S_IFREG | 0o600 if file else stat.S_IFDIR | 0o700
        size = self.disk.size if file else 0
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-ms", type=float, default=FIRST_MS)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    args = parser.parse_args()
    Server(LazyDisk(args.disk, args.first_ms / 1000, args.at_once), args.folder).serve()


if __name__ == "__main__":
    main()
