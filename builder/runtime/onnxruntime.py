"""The onnxruntime engine: one ONNX model behind the Open Inference Protocol. Started by `serve` as a child.

    main      options, the session, SIGTERM: no further connections, running requests finish, then exit 0
    Session   the model: what it takes and gives, and one inference
    Server    HTTP, in v2_server.py

The port opens once the model is loaded. An input that the model does not take is refused with what was expected; the
numbers are the model's own. Source: onnxruntime 1.31.1, onnxruntime_inference_collection.py (InferenceSession, NodeArg).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from builder.runtime.llamacpp import cpus
from builder.runtime.v2_server import Limits, Refused, Server, Spec

CUDA = "CUDAExecutionProvider"
CANNOT = 4  # as builder.errors.CapabilityError
DATATYPES = {
    **{f"tensor({kind}{n})": f"{kind.upper()}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64)},
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="builder.runtime.onnxruntime", description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="the .onnx file")
    p.add_argument("--name", required=True, help="the model's name in the API")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cuda where it works, else cpu")
    p.add_argument("--threads", type=int, default=0, help="of one inference; 0: one per CPU this process may use")
    p.add_argument("--parallel", type=int, default=2, help="inferences at the same time; others wait (default: %(default)s)")
    p.add_argument("--queue", type=int, default=256, help="requests that wait at most; more get 503 (default: %(default)s)")
    p.add_argument("--connections", type=int, default=1024, help="served at most; more wait to be taken (default: %(default)s)")
    p.add_argument("--max-request-mib", type=int, default=64, help="larger ones get 413 (default: %(default)s)")
    return p


class Session:
    """A loaded model. Satisfies `v2_server.Model`.

    Raises ValueError if it takes or gives what the protocol has no name for (sequences, maps, bfloat16), and whatever
    onnxruntime raises if it is no model.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, path: str, name: str, *, provider: str, threads: int) -> None:
        import onnxruntime

        self.name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if provider != "cpu" and CUDA in onnxruntime.get_available_providers():
            onnxruntime.preload_dlls()  # CUDA's libraries, from the nvidia wheels beside this one
            self._session = onnxruntime.InferenceSession(path, options, providers=[CUDA, "CPUExecutionProvider"])
        else:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.providers = list(self._session.get_providers())
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Arrays for arrays. Raises Refused: 400 if the model rejects them, 500 if it fails (memory, a device)."""
        import onnxruntime

        try:
            return list(self._session.run(list(outputs), dict(inputs)))
        except Exception as exc:
            kind = type(exc)
            if not kind.__module__.startswith(onnxruntime.__name__):
                raise
            status = 400 if kind.__name__ == "InvalidArgument" else 500  # its errors have no common class of their own
            raise Refused(status, f"{self.name}: {_line(exc)}") from exc


def _spec(node: Any) -> Spec:
    """A symbolic dimension ("batch") is an open one."""
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        raise ValueError(f"{node.name}: {node.type} has no name in the Open Inference Protocol")
    return Spec(node.name, datatype, tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape))


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    threads = args.threads or cpus()
    try:
        session = Session(args.model, args.name, provider=args.provider, threads=threads)
    except Exception as exc:  # noqa: BLE001 - onnxruntime's errors have no common class
        sys.stderr.write(f"error: {args.model}: onnxruntime cannot serve it: {_line(exc)}\n")
        return 1
    if args.provider == "cuda" and CUDA not in session.providers:
        sys.stderr.write(
            f"error: BUILDER_GPU=required, but onnxruntime runs {args.name} with {', '.join(session.providers)} only\n\n"
            "hint: install onnxruntime-gpu for this driver's CUDA, with cuDNN; its log above says which library is missing\n"
        )
        return CANNOT
    limits = Limits(args.parallel, args.queue, args.connections, args.max_request_mib << 20)
    return serve(Server((args.host, args.port), session, limits), f"{', '.join(session.providers)}, {threads} threads")


def serve(server: Server, how: str) -> int:
    """Until SIGTERM or SIGINT; running requests are answered first."""
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    for number in stop:  # not the default, or another thread that does not block the signal ends the process
        signal.signal(number, lambda *_: None)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    sys.stderr.write(f"builder: onnxruntime: {server.model.name} at {server.server_address}, {how}\n")
    while signal.sigtimedwait(stop, 3600) is None:
        continue
    server.shutdown()
    server.server_close()
    server.drained()
    os._exit(0)  # idle connections' threads have no stop; nothing is left to write


if __name__ == "__main__":
    sys.exit(main())
