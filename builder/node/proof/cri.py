"""A client of the container runtime interface: what kubelet would ask containerd, asked over the same socket."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, CapabilityError
from builder.node.proof import api

READY_S = 120.0
CALL_S = 120.0  # kubelet's own limit for most calls (runtimeRequestTimeout) is 2 minutes
NOT_YET = "not initialized"  # containerd serves the socket before its plugin has taken stock


class Cri:
    """An open connection. Raises BuilderError with the runtime's own words when it refuses a call."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def call(self, method: str, *, timeout_s: float = CALL_S, **fields: Any) -> Any:
        """The answer to `method`, a protobuf message. fields: of its request, messages as dictionaries."""
        import grpc

        known = api.classes()
        unary = self._channel.unary_unary(
            f"/{api.METHODS[method]}/{method}",
            request_serializer=known[f"{method}Request"].SerializeToString,
            response_deserializer=known[f"{method}Response"].FromString,
        )
        try:
            return unary(known[f"{method}Request"](**fields), timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as exc:
            raise BuilderError(f"{method}: {exc.details() or exc.code().name}") from exc


def need_client() -> None:
    """Raises CapabilityError where the libraries of the client are not installed."""
    for module in ("grpc", "google.protobuf"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # of the parent, google
            found = None
        if found is None:
            raise CapabilityError(f"{module}: not installed; containerd is asked as kubelet asks it, over gRPC",
                                  hint="pip install 'coldstart-builder[bake]'")  # fmt: skip


@contextmanager
def connected(socket: Path) -> Iterator[Cri]:
    """A connection to the containerd behind `socket`, once its plugin has read all images."""
    import grpc

    need_client()
    # The socket's path is all there is to reach: a proxy in the environment must not be asked.
    with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        cri = Cri(channel)
        _wait(cri)
        yield cri


def _wait(cri: Cri) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            cri.call("ListImages", timeout_s=READY_S)
            return
        except BuilderError as exc:
            if NOT_YET not in exc.message or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
