"""What the machine's report says. One line is a word and its fields; texts are base64 (templates/node/vm/init.sh.j2).

mark STEP UPTIME
found DEVICE FILESYSTEM
images TEXT                          `ctr images ls`
run NUMBER EXIT BEGUN ENDED USER TEXT
probe EXIT TEXT TEXT                 what the probe said; denials that the kernel logged
fail WHAT TEXT
end
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field

from builder.node.containerd import LABELS
from builder.node.vm.plan import VmCommand, VmRun

LAST = "end"
STEPS = ("kernel", "mount", "containerd", "container")


@dataclass
class Report:
    """marks: step to seconds since the kernel started. images: reference to labels. findings: what went wrong."""

    marks: dict[str, float] = field(default_factory=dict)
    device: str = ""
    filesystem: str = ""
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: list[VmRun] = field(default_factory=list)
    probe: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def step(self) -> str:
        """What the machine was doing last."""
        return next((name for name in STEPS if name not in self.marks), "power off")

    def seconds(self) -> dict[str, float]:
        """Per step, by the machine's clock."""
        ends = [0.0, *(self.marks[name] for name in STEPS if name in self.marks)]
        return {name: after - before for name, before, after in zip(STEPS, ends, ends[1:], strict=False)}


def parse(said: str, commands: Sequence[VmCommand]) -> Report:
    """The report, as far as it goes: a last line without its end is left out."""
    report = Report()
    for line in said.replace("\r", "").split("\n")[:-1]:
        word, _, rest = line.partition(" ")
        fields = rest.split(" ")
        try:
            _take(report, word, fields, commands)
        except (ValueError, IndexError, binascii.Error):
            report.findings.append(f"the machine reported {line[:200]!r}")
    return report


def _take(report: Report, word: str, fields: list[str], commands: Sequence[VmCommand]) -> None:
    if word == "mark":
        report.marks[fields[0]] = float(fields[1])
    elif word == "found":
        report.device, report.filesystem = fields
    elif word == "images":
        report.images = _images(_text(fields[0]))
    elif word == "run":
        number, code, begun, ended, user, text = fields
        command = commands[int(number)]
        seconds = float(ended) - float(begun)
        report.runs.append(VmRun(command.reference, command.argv, user, int(code), seconds, _text(text)))
    elif word == "probe":
        report.probe = _probe(int(fields[0]), _text(fields[1]), _text(fields[2]))
    elif word == "fail":
        report.findings.append(f"{fields[0]}: {_text(fields[1])}")


def findings(report: Report, commands: Sequence[VmCommand], *, run_s: float) -> list[str]:
    """Everything that contradicts the claim of the disk; empty if all is well. The machine has said its last word."""
    if report.findings:  # it stopped there
        return report.findings
    found = []
    for reference, labels in report.images.items():
        found += [
            f"image {reference}: {key} is {labels.get(key)!r}, expected {value!r}"
            for key, value in LABELS.items()
            if labels.get(key) != value
        ]
    found += [f"image {c.reference}: absent" for c in commands if c.reference not in report.images]
    for run in report.runs:
        if run.exit:
            how = f"no end within {run_s:.0f} s" if run.exit == 137 and run.seconds >= run_s else f"exit status {run.exit}"
            said = "".join(f"\n    {line}" for line in run.output.strip().splitlines()[-5:])
            found.append(f"start {run.reference}: {how}{said}")
    missing = commands[len(report.runs) :]
    return found + [f"start {command.reference}: no result" for command in missing]


def _images(said: str) -> dict[str, dict[str, str]]:
    """Out of `ctr images ls`: REF TYPE DIGEST SIZE UNIT PLATFORMS LABELS; labels are k=v,k=v or -."""
    rows = (line.split() for line in said.splitlines()[1:])
    return {words[0]: dict(pair.split("=", 1) for pair in words[-1].split(",") if "=" in pair) for words in rows if words}


def _probe(code: int, said: str, denials: str) -> dict[str, str]:
    rows = (line.partition(" ") for line in said.splitlines())
    cached = [line for line in denials.splitlines() if ":cache_t:" in line]
    found = {key: value for key, _, value in rows} if code == 0 else {"failure": f"exit status {code}: {said.strip()}"}
    return found | ({"denial": cached[0]} if cached else {})


def _text(field: str) -> str:
    return base64.b64decode(field, validate=True).decode(errors="replace")
