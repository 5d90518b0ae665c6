"""The commands with more than one option: serve, prefetch, selftest."""

from __future__ import annotations

import argparse
import json
import sys
import time

from builder.runtime import settings
from builder.runtime.record import Recorder, log, process_started


def main(argv: list[str]) -> int:
    entered = time.time()
    args = _parser().parse_args(argv)
    if args.command == "prefetch":
        return _prefetch(args)
    if args.command == "selftest":
        from builder.runtime import selftest

        return selftest.main(args, settings.read())
    return _serve(entered)


def _serve(entered: float) -> int:
    chosen = settings.read()
    from builder.runtime.serve import serve

    began = process_started()
    recorder = Recorder(chosen.phases)
    recorder.add("runtime_import", began, time.time(), {"python_s": round(entered - began, 6)})
    return serve(chosen, recorder, began)


def _prefetch(args: argparse.Namespace) -> int:
    import dataclasses

    from builder.runtime.weights import find

    chosen, leases = settings.read(), []
    for ref in args.ref or [chosen.model]:
        found = find(dataclasses.replace(chosen, model=settings.check_ref(ref)))
        leases.append(found.lease)  # until the end: the second model must not evict the first
        did = "fetched" if found.fetched_bytes else "already here"
        log("prefetch", f"{found.manifest.name} {found.digest[:19]}: {did}, {found.seconds:.1f} s")
        sys.stdout.write(json.dumps(found.to_json()) + "\n")
        sys.stdout.flush()
    for lease in leases:
        lease.release()
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m builder.runtime",
        description="Serve a model: weights, engine, warm-up, ready.",
        epilog="Settings: BUILDER_MODEL BUILDER_STORE BUILDER_MODELS_ROOT BUILDER_ENGINE BUILDER_ENGINE_ARGS BUILDER_PORT ...",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="{serve,prefetch,probe,selftest}")
    commands.add_parser("serve", help="find or fetch the weights, run the engine, and answer requests")
    prefetch = commands.add_parser("prefetch", help="find or fetch the weights, print where they are, and end")
    prefetch.add_argument("ref", nargs="*", help="models: name, name@revision or sha256:<hex> (default: BUILDER_MODEL)")
    commands.add_parser("probe", help="ask a running server: probe live, probe ready")
    test = commands.add_parser("selftest", help="serve, ask, put under load, and print what was found as JSON")
    test.add_argument("--prompt", default="What is the capital of France?", help="the question (default: %(default)s)")
    test.add_argument("--contains", default="", help="text that the answer must contain")
    test.add_argument("--max-tokens", type=int, default=48, help="length of the answer (default: %(default)s)")
    test.add_argument("--concurrency", default="1,4", help="load levels (default: %(default)s)")
    test.add_argument("--requests", default="8", help="requests per level (default: %(default)s)")
    test.add_argument("--timeout", type=float, default=600.0, help="seconds until ready (default: %(default)s)")
    return p
