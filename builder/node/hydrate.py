"""How long a volume made from the snapshot takes to hold its blocks, and what that costs. Arithmetic only.

EBS loads a block when it is first touched unless told otherwise, so a pre-seeded volume can start slower than a pull.
Prices: us-east-1, as published by AWS in 2026 (EBS pricing page; provisioned initialisation rate as quoted in
github.com/github-aws-runners/terraform-aws-github-runner issue 5165). Other regions differ by a few per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from builder import units
from builder.node.blocks import BLOCK

GIB, MIB = 1 << 30, 1 << 20
PUT_USD_PER_BLOCK = 0.006 / 1000
INIT_USD_PER_GIB_AT_300 = 0.0036
FSR_USD_PER_HOUR = 0.75  # per snapshot and availability zone, one hour at least
FSR_MIN_PER_TIB = 60  # optimisation time, by size of the volume
LAZY_MIB_PER_S = 5  # users' reports of first-touch reads: bottlerocket-images-cache issue 13
ADVISED_BYTES = 10 * GIB  # beyond this, streaming weights to local NVMe is faster than the cap of 300 MiB/s


@dataclass(frozen=True, slots=True)
class Hydration:
    """mode: none, rate or fsr; other outside AWS. seconds: until every block is there, per node. *_usd: see the field names.

    advice: one sentence, "" where there is nothing to say.
    """

    mode: str
    nonzero_bytes: int
    seconds: float
    upload_usd: float
    node_usd: float
    zone_usd_per_hour: float
    credits: int
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "nonzero_bytes": self.nonzero_bytes,
            "seconds": round(self.seconds, 1),
            "upload_usd": round(self.upload_usd, 4),
            "node_usd": round(self.node_usd, 6),
            "zone_usd_per_hour": self.zone_usd_per_hour,
            "credits": self.credits,
            "advice": self.advice,
        }

    def __str__(self) -> str:
        size, time = units.format_size(self.nonzero_bytes), units.format_seconds(self.seconds)
        text = {
            "rate": f"{size} in {time} per node at ${self.node_usd:.4f}",
            "fsr": f"{size} at once, {self.credits} volumes per hour and zone, ${self.zone_usd_per_hour:.2f} per zone and hour",
            "none": f"{size} on first touch, up to {time} per node",
            "other": f"{size}; outside AWS there is no rate to set",
        }[self.mode]
        if self.mode == "other":
            return text
        return f"{text}; upload ${self.upload_usd:.4f}"


def elsewhere(nonzero_bytes: int) -> Hydration:
    """The plan outside AWS, where there is no rate to buy and we know no price.

    >>> print(elsewhere(12 << 30))
    12.0 GiB; outside AWS there is no rate to set
    """
    return Hydration("other", nonzero_bytes, 0.0, 0.0, 0.0, 0.0, 0)


def plan(nonzero_bytes: int, disk_bytes: int, *, mode: str, mib_per_s: int = 300) -> Hydration:
    """nonzero_bytes: what the snapshot holds, whole blocks. disk_bytes: size of the volume. mib_per_s: for mode rate.

    rate: seconds = bytes / rate; dollars = GiB x 0.0036 x rate/300.  fsr: credits = max(1, min(10, 1024 / GiB of the
    volume)), refilled as many per hour.  none: at the rate that users report.

    >>> print(plan(12 << 30, 120 << 30, mode="rate"))
    12.0 GiB in 41.0 s per node at $0.0432; upload $0.1475
    """
    upload = nonzero_bytes / BLOCK * PUT_USD_PER_BLOCK
    gib = nonzero_bytes / GIB
    if mode == "fsr":
        volumes = max(1, min(10, int(1024 / (disk_bytes / GIB))))
        wait_s = disk_bytes / (1024 * GIB) * FSR_MIN_PER_TIB * 60
        advice = f"a new snapshot is ready for it after {units.format_seconds(wait_s)}"
        return Hydration(mode, nonzero_bytes, 0.0, upload, 0.0, FSR_USD_PER_HOUR, volumes, advice)
    speed = mib_per_s if mode == "rate" else LAZY_MIB_PER_S
    seconds = nonzero_bytes / MIB / speed
    advice = ""
    if nonzero_bytes > ADVISED_BYTES:
        advice = f"above {units.format_size(ADVISED_BYTES)}: large weights start sooner from the store than from a snapshot"
    elif mode == "none":
        advice = "set bake.hydrate.mode to rate: 100 to 300 MiB/s from the first second"
    dollars = gib * INIT_USD_PER_GIB_AT_300 * mib_per_s / 300 if mode == "rate" else 0.0
    return Hydration(mode, nonzero_bytes, seconds, upload, dollars, 0.0, 0, advice)
