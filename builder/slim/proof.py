"""Proof that a pruned library is what the original was, for the chips that stay: by NVIDIA's own tool, and by the loader.

cuobjdump (wheel nvidia-cuda-cuobjdump, which needs nothing but libc) must list exactly the code that we say is there, of the
sections that it looks into: .nv_fatbin and __nv_relfatbin. And the loader must take the file as it took the original: with
lazy binding and with all symbols bound, each in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from builder.errors import CapabilityError
from builder.slim import elf, fatbin

LIMIT_S = 300.0  # cuobjdump takes 9 s for the largest library of torch 2.13, on one core
LISTED = re.compile(r"^(?:ELF|PTX) file +\d+: .*?\.(sm_\d+[af]?)\.(?:cubin|ptx) *$", re.M)
EMPTY = ("No ELF file found", "No PTX file found", "does not contain device code")
FILE = "\0"  # stands for the file's path in what was said of it: two files are compared by the rest
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1], mode=int(sys.argv[2]))"


def find_cuobjdump(wanted: str = "") -> Path:
    """`wanted`, else the one on PATH, else that of the wheel nvidia-cuda-cuobjdump beside this Python.

    Raises CapabilityError if there is none, or if it does not start.
    """
    beside = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    found = wanted or shutil.which("cuobjdump") or (str(beside[-1]) if beside else "")
    hint = "pip install nvidia-cuda-cuobjdump, or name the program with --cuobjdump"
    if not found:
        raise CapabilityError("cuobjdump is neither on PATH nor beside this Python; the proof needs it", hint=hint)
    try:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CapabilityError(f"{found}: does not start: {exc}", hint=hint) from exc
    if done.returncode:
        raise CapabilityError(f"{found} --version: exit code {done.returncode}: {done.stderr.strip()}", hint=hint)
    return Path(found)


def lists(new: Path, old: Path, cuobjdump: Path) -> tuple[str, str]:
    """(fault, note). fault: cuobjdump lists of `new` something else than what is there, or cannot read it.

    note: it cannot read `old` either, so that its word counts for nothing: some of bitsandbytes 0.50.2 hold cubins of CUDA 12.1
    that the cuobjdump of CUDA 13.5 calls invalid.
    """
    for kind, option in (("cubin", "--list-elf"), ("ptx", "--list-ptx")):
        found, refusal = _list(new, cuobjdump, option)
        if refusal:
            if _list(old, cuobjdump, option)[1] == refusal:
                return "", f"cuobjdump cannot read it, nor the original: {refusal.replace(FILE, old.name)}"
            return f"cuobjdump {option}: {refusal.replace(FILE, old.name)}", ""
        fault = _differ(_codes(new, kind), found)
        if fault:
            return f"cuobjdump {option} lists {fault}", ""
    return "", ""


def _list(path: Path, cuobjdump: Path, option: str) -> tuple[Counter[str], str]:
    """(chips listed, why it refuses, with FILE for `path`)."""
    command = [str(cuobjdump), "--all-fatbin", option, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return Counter(), f"no end within {LIMIT_S:.0f} s"
    said = done.stdout + done.stderr
    if done.returncode and not any(text in said for text in EMPTY):
        return Counter(), f"exit code {done.returncode}: {done.stderr.strip().replace(str(path), FILE)[-300:]}"
    return Counter(LISTED.findall(done.stdout)), ""


def _codes(path: Path, kind: str) -> Counter[str]:
    """The chips of the entries that cuobjdump looks at, as it writes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        source = elf.Source(descriptor)
        seen = fatbin.containers(source, tuple(s for s in elf.read(source).sections if s.name in fatbin.REGISTERED))
    finally:
        os.close(descriptor)
    codes = [entry.code for container in seen for entry in container.entries if entry.code.kind == kind]
    return Counter(f"sm_{code.sm}{code.suffix}" for code in codes)


def _differ(expected: Counter[str], found: Counter[str]) -> str:
    """The first difference. A suffix counts where cuobjdump gives one: of family code it names only the number."""
    plain = _numbers(expected), _numbers(found)
    for number in sorted(set(plain[0]) | set(plain[1])):
        if plain[0][number] != plain[1][number]:
            return f"{plain[1][number]} of {number}; expected {plain[0][number]}"
    for chip, count in sorted(found.items()):
        if chip[-1].isalpha() and count > expected[chip]:
            return f"{count} of {chip}; expected {expected[chip]}"
    return ""


def _numbers(counted: Counter[str]) -> Counter[str]:
    out: Counter[str] = Counter()
    for chip, count in counted.items():
        out[chip.rstrip("af")] += count
    return out


def loads(new: Path, old: Path) -> tuple[str, str]:
    """(fault, note). fault: the original loads here and the new file does not.  note: neither does, and why."""
    note = ""
    for mode in (os.RTLD_LAZY, os.RTLD_NOW):
        after = _load(new, mode)
        if not after:
            continue
        before = _load(old, mode)
        if before != after:
            name = {os.RTLD_LAZY: "RTLD_LAZY", os.RTLD_NOW: "RTLD_NOW"}[mode]
            was = f"the original: {before}" if before else "the original loads"
            return f"dlopen with {name}: {after}; {was}".replace(FILE, old.name), ""
        note = note or f"does not load here, nor did the original: {before}".replace(FILE, old.name)
    return "", note


def _load(path: Path, mode: int) -> str:
    """Why a process that loads `path` fails, with FILE for it; "" if it does not."""
    command = [sys.executable, "-S", "-c", LOAD, str(path.absolute()), str(mode)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S:.0f} s"
    if not done.returncode:
        return ""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1].replace(str(path.absolute()), FILE)
    return last.removeprefix("OSError: ")
