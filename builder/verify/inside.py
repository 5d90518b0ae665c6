"""The program that looks at a running server from within: engine processes, their environment, user, weights, GPU.

SCRIPT runs as `python -c SCRIPT MODELS_ROOT TOP_PID` in the container (TOP_PID 1) or beside a server in place, with
nothing but the standard library, and prints one JSON object. MODELS_ROOT counts where the server was not given one.
It reads /proc/PID/environ, which is what the process was started with (proc(5)): an ENV of the image proves nothing,
because an entry point may overwrite it. A process that changes its own variable after it started is not seen by this.
"""

from __future__ import annotations

import json
from typing import Any

from builder.errors import BuilderError

SCRIPT = r"""
import ctypes, json, os, sys
models_root, top = sys.argv[1], int(sys.argv[2])
def read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""
table = {}
for name in os.listdir("/proc"):
    if not name.isdigit() or int(name) == os.getpid():
        continue
    fields = dict(l.split(b":", 1) for l in read(f"/proc/{name}/status").splitlines() if b":" in l)
    if b"PPid" not in fields:
        continue
    table[int(name)] = {
        "parent": int(fields[b"PPid"]), "uid": int(fields[b"Uid"].split()[0]),
        "name": fields[b"Name"].strip().decode(errors="replace"),
        "command": read(f"/proc/{name}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip(),
    }
tree, new = [], [top]
while new:
    tree += new
    new = [p for p, v in table.items() if v["parent"] in new and p not in tree]
runtime = next((p for p in tree if "builder.runtime" in table.get(p, {}).get("command", "")), top)
below, new = [], [p for p in tree if table.get(p, {}).get("parent") == runtime]
while new:
    below += new
    new = [p for p in tree if table[p]["parent"] in new]
def environ(pid):
    return dict(item.split(b"=", 1) for item in read(f"/proc/{pid}/environ").split(b"\0") if b"=" in item)
def devices(pid):
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("/dev/nvidia"):
                found.add(target)
    except OSError:
        pass
    return sorted(found)
engine = []
for pid in below:
    env = environ(pid)
    loading = env.get(b"CUDA_MODULE_LOADING")
    engine.append({"pid": pid, "name": table[pid]["name"], "uid": table[pid]["uid"], "readable": bool(env),
                   "cuda_module_loading": None if loading is None else loading.decode(errors="replace"),
                   "devices": devices(pid)})
def gpu_count():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
markers = {}
for root in environ(runtime).get(b"BUILDER_MODELS_ROOT", models_root.encode()).decode().split(":"):
    for base in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        text = read(os.path.join(root, base, ".builder", "complete"))
        if text:
            markers[base] = text.decode(errors="replace").strip()
uid = table.get(runtime, {}).get("uid")
print(json.dumps({"engine": engine, "markers": markers, "gpus": gpu_count(), "runtime_uid": uid}))
"""


def parse(output: bytes) -> dict[str, Any]:
    """What SCRIPT printed. Raises BuilderError when it printed something else."""
    try:
        found = json.loads(output.decode().strip().splitlines()[-1])
    except (ValueError, IndexError) as exc:
        said = output.decode(errors="replace").strip()[-300:]
        raise BuilderError(
            f"the look inside the server gave no result: {said or 'no output'}",
            hint="the image needs a whole Python (python3-minimal lacks json)",
        ) from exc
    if not isinstance(found, dict):
        raise BuilderError(f"the look inside the server gave {type(found).__name__}, expected an object")
    return found
