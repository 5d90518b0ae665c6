"""`python -m benchmarks TOPIC`, or `make bench topic=TOPIC`: Markdown tables, peers and limits in the same run."""

from __future__ import annotations

import importlib
import sys

TOPICS = ("weights", "image", "bake")


def main() -> int:
    topic = sys.argv[1] if len(sys.argv) > 1 else ""
    if topic not in TOPICS:
        sys.stderr.write(f"topics: {', '.join(TOPICS)}\n")
        return 2
    sys.argv = [f"benchmarks {topic}", *sys.argv[2:]]
    importlib.import_module(f"benchmarks.{topic}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
