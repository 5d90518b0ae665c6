"""An EC2 API to build against: moto's server, with machine images under the names and owners that Packer templates look for.

moto checks little, so a test says what it then holds; wrong names of arguments botocore and Packer refuse before it sees them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bounds import BOUND_S

AMIS = {"debian-12-amd64-20260713-2172": "136693071363", "amazon-eks-node-al2023-x86_64-nvidia-1.34-v20260714": "602401143452"}


def _ami(number: int, name: str, owner: str) -> dict[str, object]:
    return {
        "ami_id": f"ami-{number:017x}",
        "name": name,
        "owner_id": owner,
        "public": True,
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "root_device_type": "ebs",
        "root_device_name": "/dev/xvda",
        "hypervisor": "xen",
        "image_type": "machine",
        "image_location": f"amazon/{name}",
        "state": "available",
    }


@contextmanager
def running() -> Iterator[str]:
    """The URL of a server of its own, in a process of its own: it reads its machine images when it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        amis = Path(folder) / "amis.json"
        amis.write_text(json.dumps([_ami(n, *one) for n, one in enumerate(AMIS.items(), 1)]))
        port_file = Path(folder) / "port"
        code = (
            "import sys, time; from pathlib import Path; from moto.server import ThreadedMotoServer\n"
            "s = ThreadedMotoServer(ip_address='127.0.0.1', port=0); s.start()\n"
            "p = Path(sys.argv[1]); q = p.with_suffix('.new'); q.write_text(str(s.get_host_and_port()[1])); q.replace(p)\n"
            "sys.stdin.read()\n"
        )
        environ = {**os.environ, "MOTO_AMIS_PATH": str(amis)}
        with subprocess.Popen([sys.executable, "-c", code, port_file], stdin=subprocess.PIPE, env=environ,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # fmt: skip
            try:
                yield _answering(server, port_file)
            finally:
                server.kill()


def _answering(server: subprocess.Popen[bytes], port_file: Path) -> str:
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline and server.poll() is None:
        if port_file.exists():
            url = f"http://127.0.0.1:{port_file.read_text()}"
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=BOUND_S).close()
            except urllib.error.URLError:
                pass
            else:
                return url
        time.sleep(0.05)
    raise AssertionError(f"moto did not answer; exit status {server.poll()}")
