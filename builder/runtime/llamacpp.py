"""The llama.cpp engine: its own HTTP server, from the xllamacpp wheel, in this process. Started by `serve` as a child.

SIGTERM after the load drains: it waits for running requests, then exits 0. Before, the signal ends the process at once.
A start with the same arguments answers a greedy request (temperature 0) the same way each time.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTEXT = 8192  # tokens, shared by all slots; the model's own maximum may need more memory than the node has
SLOTS = 4
CACHE_MIB = 256  # llama.cpp's default of 8 GiB for old prompts is more than many pods may use
_BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


def parser() -> argparse.ArgumentParser:
    """Names and meanings are those of llama-server, so that its documentation holds."""
    p = argparse.ArgumentParser(prog="builder.runtime.llamacpp", description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="the .gguf file, or the first of its shards")
    p.add_argument("--alias", required=True, help="the model's name in the API")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--ctx-size", type=int, default=CONTEXT, help="tokens, over all slots; 0: the model's own maximum")
    p.add_argument("--parallel", type=int, default=SLOTS, help="requests at the same time")
    p.add_argument("--threads", type=int, default=0, help="0: one per CPU this process may use")
    p.add_argument("--threads-http", type=int, default=-1, help="connections served at the same time; -1: llama.cpp decides")
    p.add_argument("--n-gpu-layers", type=int, default=-1, help="-1: as many as fit")
    p.add_argument("--batch-size", type=int, default=2048)
    p.add_argument("--ubatch-size", type=int, default=512)
    p.add_argument("--cache-ram", type=int, default=CACHE_MIB, help="MiB of memory for old prompts; 0: none")
    p.add_argument("--chat-template", default="", help="a Jinja template in place of the model's own")
    p.add_argument("--mmproj", default="", help="multimodal projector, a .gguf file")
    return p


def params(args: argparse.Namespace) -> Any:
    """xllamacpp's CommonParams for `args`."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = args.model
    p.model_alias = {args.alias}
    p.hostnames, p.port = [args.host], args.port
    p.n_ctx, p.n_parallel = args.ctx_size, args.parallel
    p.n_batch, p.n_ubatch = args.batch_size, args.ubatch_size
    p.n_gpu_layers, p.n_threads_http = args.n_gpu_layers, args.threads_http
    p.cpuparams.n_threads = args.threads or cpus()
    p.cache_ram_mib = args.cache_ram
    p.endpoint_metrics = True
    if args.chat_template:
        p.chat_template = args.chat_template
    if args.mmproj:
        p.mmproj.path = args.mmproj
    return p


def cpus() -> int:
    """CPUs this process may use: its CPU set, and its cgroup's quota rounded up.

    llama.cpp counts the machine's cores. More threads than quota spin at barriers until the kernel throttles them all.
    Source: kernel cgroup-v2 documentation, cpu.max: "$MAX $PERIOD" in microseconds, or "max".
    """
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import xllamacpp

    try:
        server = xllamacpp.Server(params(args))
    except (RuntimeError, ValueError) as exc:
        sys.stderr.write(f"error: {args.model}: llama.cpp cannot serve it: {exc}\n")
        return 1
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    # Handlers must not be the default ones, or another thread that does not block the signal ends the process.
    for number in stop:
        signal.signal(number, lambda *_: None)
    while signal.sigtimedwait(stop, 3600) is None:
        continue
    while any(int(n) for n in _BUSY.findall(str(server.handle_metrics()))):
        time.sleep(0.05)
    os._exit(0)  # the server's threads have no stop; nothing is left to write


if __name__ == "__main__":
    sys.exit(main())
