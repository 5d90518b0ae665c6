"""GPU code that no chip of this image can use, out of a layer's libraries; stubs, in the places of libraries that the image
does without. trim.py calls it before it splits the layer.

prune.json beside this file names chips, profile and stubs. /run/slim holds builder/slim, which does the work and imports
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
STUBS = "libraries with a stub in their place"
TOLD = (
    *("path", "package", "licence", "decision", "status", "reason", "size_before", "size_after", "zeroed"),
    *("error", "before", "after", "jit", "runs_on", "notes"),
)
ELSEWHERE = ("class", "byte-order", "machine")  # of another machine: no library of this image
SHOWN = 20


def prune(files, layer: str, out: Path) -> None:
    """Change the files of the layer and its counts (trim.Files); write RECORD/LAYER.json below out/slim.

    Raises SystemExit with the fault, which the build shows.
    """
    settings = json.loads(Path(__file__).with_name("prune.json").read_text())
    folder = out / "slim" / RECORD
    folder.mkdir(parents=True)  # there for a COPY, even if this layer has no GPU code
    sys.path.insert(0, str(SLIM))
    from builder.errors import BuilderError

    try:
        replaced = put_stubs(files, settings["stubs"])
        rows = slim(files, settings) if settings["gpus"] else []
    except BuilderError as exc:
        sys.exit(f"prune: {exc.message}" + (f"\nhint: {exc.hint}" if exc.hint else ""))
    told = [tell(row) for row in rows if row["before"] or (row["status"] == "left" and row["error"] not in ELSEWHERE)]
    say([f"prune: {row['path']}: left as it was: {row['reason']}" for row in told if row["status"] == "left"])
    if told or replaced:
        record = {"layer": layer, **settings, "libraries": told, "stubs": replaced}
        (folder / f"{layer}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def tell(row: dict) -> dict:
    """What the record keeps. before, after: {} where the file was not understood, so that nobody knows what is in it."""
    found = {key: row[key] for key in TOLD}
    return found | {key: found[key] or {} for key in ("before", "after")}


def say(lines: list[str]) -> None:
    """To the build's log."""
    more = [f"prune: {len(lines) - SHOWN} more are in the record"] if len(lines) > SHOWN else []
    sys.stderr.writelines(f"{line}\n" for line in lines[:SHOWN] + more)


def put_stubs(files, names: list[str]) -> list[dict]:
    """A stub in the place of each library of `names`."""
    from builder.slim import stub, stubs

    made = []
    for path in sorted(files.sizes):
        name = stubs.of_file(path.name, files.package(path), names)
        if name and not path.is_symlink():
            made.append({"path": str(path), "package": files.package(path)} | stub.replace(path, name).to_json())
    count(files, STUBS)
    return made


def slim(files, settings: dict) -> list[dict]:
    """The report on each library with GPU code."""
    from builder.slim import tree
    from builder.slim.chips import Chip

    gpus = tuple(map(Chip.parse, settings["gpus"]))
    found = tree.slim([files.venv], gpus, settings["profile"], cuobjdump=CUOBJDUMP, load=True)
    if fault := found.failure():
        raise fault
    count(files, CAUSE)
    return found.to_json()["files"]


def count(files, cause: str) -> None:
    """Take what became smaller into the layer's counts. Of several names of one file, trim.py counts the first."""
    for path, size in files.sizes.items():
        now = path.lstat().st_size
        if size and now != size:
            files.note(path, cause, size - now)
            files.sizes[path] = now
