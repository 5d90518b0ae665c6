"""GPU code that no chip of this image can use, out of a layer's libraries. trim.py calls it before it splits the layer.

prune.json beside this file names the chips and the profile. /run/slim holds builder/slim, which does the work and imports
nothing but the standard library; /run/proof holds NVIDIA's cuobjdump, which must list exactly what was kept. A library that
loaded before must load afterwards. Any doubt fails the build.

What was done to each library, and why not, goes to /out/slim and from there into a layer of its own: a layer of wheels in
which nothing changed is the same, digest for digest, in images for other chips and in images that name none.
"""

import json
import sys
from pathlib import Path

SLIM = Path("/run/slim")
CUOBJDUMP = Path("/run/proof/cuobjdump")
RECORD = Path("opt/builder/slim")
CAUSE = "GPU code for other chips"
TOLD = (
    *("path", "package", "licence", "decision", "status", "reason", "size_before", "size_after", "zeroed"),
    *("before", "after", "jit", "runs_on"),
)


def prune(files, layer: str, out: Path) -> None:
    """Change the files of the layer and its counts (trim.Files); write RECORD/LAYER.json below out/slim."""
    settings = json.loads(Path(__file__).with_name("prune.json").read_text())
    folder = out / "slim" / RECORD
    folder.mkdir(parents=True)  # there for a COPY, even if this layer has no GPU code
    rows = slim(files.venv, settings)
    count(files, CAUSE)
    told = [{key: row[key] for key in TOLD} for row in rows if row.get("before")]
    if told:
        record = {"layer": layer, **settings, "libraries": told}
        (folder / f"{layer}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def slim(folder: Path, settings: dict) -> list[dict]:
    """The report on each library with GPU code below `folder`. Raises SystemExit with the fault, which the build shows."""
    sys.path.insert(0, str(SLIM))
    from builder.errors import BuilderError
    from builder.slim import tree
    from builder.slim.chips import Chip

    try:
        gpus = tuple(map(Chip.parse, settings["gpus"]))
        found = tree.slim([folder], gpus, settings["profile"], cuobjdump=CUOBJDUMP, load=True)
        fault = found.failure()
    except BuilderError as exc:
        fault = exc
    if fault:
        sys.exit(f"prune: {fault.message}" + (f"\nhint: {fault.hint}" if fault.hint else ""))
    return found.to_json()["files"]


def count(files, cause: str) -> None:
    """Take what became smaller into the layer's counts. Of several names of one file, trim.py counts the first."""
    for path, size in files.sizes.items():
        now = path.lstat().st_size
        if size and now != size:
            files.note(path, cause, size - now)
            files.sizes[path] = now
