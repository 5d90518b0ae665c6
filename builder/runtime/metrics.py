"""Prometheus text format 0.0.4, written by hand: the image has no client library.

Source: prometheus.io, "Exposition formats": HELP escapes \\\\ and \\n; label values escape \\\\, \\n and the quote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """One family. samples: (labels, value) pairs, each label set once. A counter's name ends in _total."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...]


def metric(name: str, kind: str, text: str, value: float | Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    """A family with one unlabelled sample, or with the samples given."""
    samples = (({}, float(value)),) if isinstance(value, int | float) else tuple(value)
    return Metric(name, kind, text, samples)


def render(metrics: Iterable[Metric]) -> bytes:
    """The page. Families without a sample are left out."""
    lines = []
    for m in metrics:
        if not m.samples:
            continue
        lines.append(f"# HELP {m.name} " + m.help.replace("\\", r"\\").replace("\n", r"\n"))
        lines.append(f"# TYPE {m.name} {m.kind}")
        lines.extend(f"{m.name}{_labels(labels)} {_number(value)}" for labels, value in m.samples)
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = {k: v.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for k, v in labels.items()}
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped.items()) + "}"


def _number(value: float) -> str:
    """Integers without a point, the rest so that reading gives the same number back."""
    return str(int(value)) if value == int(value) else repr(value)
