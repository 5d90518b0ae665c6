"""What an engine and builder's runtime need, down to the last wheel: the lock of an image.

uv resolves: for the image's own Python and platform, whatever this machine's are (pip judges environment markers by the
Python that runs it), 197 packages of vLLM in about a second, and it writes the standard lock format (PEP 751), which names
each wheel with its hash. Credentials of an index reach it through the environment, never its command line.
"""

from __future__ import annotations

import difflib
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from builder import process
from builder.config.spec import Image, Spec
from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError
from builder.image import layers, platforms, pruning, sizes
from builder.image.dockerfile import RUNTIME_PINS
from builder.image.lock import Lock, LockLayer, Wheel, normal
from builder.image.locked import asks, tools
from builder.image.platforms import MACHINES
from builder.image.recipes import Recipe, names, recipe
from builder.image.sizes import Found

GLIBC = {"bookworm": 36, "trixie": 41, "jammy": 35, "noble": 39}
"""Minor version of glibc 2 by distribution: it decides which manylinux wheels the image can load."""
OLDEST_GLIBC = 28
NEWEST_UV = 40


@dataclass(frozen=True, slots=True)
class Places:
    """Where wheels are looked for.

    environ: of the resolver, where an index's address goes; a login goes through the netrc file that $NETRC names.
    wheelhouse: a folder of wheels, asked too.  online: whether an index may be asked at all.
    """

    environ: Mapping[str, str]
    wheelhouse: Path | None = None
    online: bool = True


def resolve(spec: Spec, places: Places) -> Lock:
    """Every wheel of the image of `spec`, in layers.

    Raises ConfigError where there is no solution, it is for another CUDA than image.cuda, or image.without names what it lacks;
    RemoteError where no index answers.
    """
    image, plan = spec.image, recipe(spec.image)
    found = _everywhere(asks(spec), image, places)
    found, unwanted = _leave_out(found, spec, places) if image.without else (found, ())
    wheels = _merge(found, platforms.of(image), places.environ)
    wheels, left_out = _without(wheels, plan, image)
    _require_cuda(wheels, image)
    runtime = frozenset(names(RUNTIME_PINS))
    closure = _torch_closure(wheels, image, places) - runtime
    cut = layers.cut(wheels, runtime=runtime, torch=closure, engine=plan.engine)
    tools = _tools(wheels, image, places)
    return Lock(spec.name, image.python, platforms.of(image), asks(spec), cut, (*left_out, *unwanted), tools)


_ByPlatform = dict[str, dict[str, Found]]  # by name, then by platform


def _everywhere(
    pins: Iterable[str], image: Image, places: Places, constraints: Sequence[str] = (), without: Sequence[str] = ()
) -> _ByPlatform:
    found: _ByPlatform = {}
    for platform in platforms.of(image):
        for one in _resolve(pins, image, platform, places, constraints, without):
            found.setdefault(one.name, {})[platform] = one
    return found


def _resolve(
    pins: Iterable[str],
    image: Image,
    platform: str,
    places: Places,
    constraints: Iterable[str] = (),
    without: Iterable[str] = (),
) -> list[Found]:
    """without: distributions that count as not needed, whatever asks for them."""
    with tempfile.TemporaryDirectory(prefix="builder-lock-") as work:
        asked, lock, bounds = Path(work, "requirements.in"), Path(work, "pylock.toml"), Path(work, "constraints.txt")
        asked.write_text("\n".join(pins) + "\n")
        bounds.write_text("\n".join([*constraints, *_not_for_cpus(image, places)]) + "\n")
        files = ["--constraints", str(bounds), "--output-file", str(lock)]
        if without:
            excluded = Path(work, "excludes.txt")
            excluded.write_text("".join(f"{name}\n" for name in without))
            files += ["--excludes", str(excluded)]
        _uv(["pip", "compile", str(asked), *files], image, platform, places)
        body = tomllib.loads(lock.read_text())
        packages = body.get("packages", [])
        tags = {tag: rank for rank, tag in enumerate(_tags(image, platform))}
        return [_best(package, tags, Path(work)) for package in packages]


def _not_for_cpus(image: Image, places: Places) -> Iterable[str]:
    """A wheel +cpu in a wheelhouse satisfies ==, and wins: a CUDA image would have no CUDA."""
    if image.cuda == "none" or places.wheelhouse is None:
        return ()
    found = (wheel.name.split("-") for wheel in places.wheelhouse.glob("*+cpu-*.whl"))
    return sorted({f"{normal(parts[0])}!={parts[1]}" for parts in found})


def _uv(args: Sequence[str], image: Image, platform: str, places: Places) -> None:
    """Run uv. Raises the error that its last words mean."""
    try:
        import uv

        program = uv.find_uv_bin()
    except (ImportError, FileNotFoundError) as exc:
        raise CapabilityError("uv: not installed; it resolves the wheels of an image", hint="pip install uv") from exc
    target = f"{MACHINES[platform]}-manylinux_2_{min(_glibc(image), NEWEST_UV)}"
    command = [program, *args, "--format", "pylock.toml", "--quiet", "--no-header", "--no-config", "--only-binary", ":all:"]
    # Its own interpreter, for any Python: it would look for that one, and ask the web for it, for 10 s (uv 0.13.9).
    command += [
        "--python-version",
        image.python,
        "--python-platform",
        target,
        "--python",
        sys.executable,
        "--no-python-downloads",
    ]
    command += ["--find-links", str(places.wheelhouse)] if places.wheelhouse else []
    command += [] if places.online else ["--no-index"]
    done = process.run(command, env=places.environ, check=False, timeout_s=900)
    if done.returncode:
        raise _failure(done.stderr.decode(errors="replace"))


def _failure(said: str) -> BuilderError:
    """uv's last words, without the addresses of indexes, as the error they mean."""
    text = re.sub(r"://[^/@\s]+@", "://", said)
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("warning")]
    reason = "\n  ".join(line.rstrip() for line in lines[:8])
    if re.search(r"\b(401|403|407)\b.*(Unauthorized|Forbidden|Proxy)|HTTP status client error \((401|403|407)", text, re.I):
        return RemoteError(f"the package index refused: {reason}", hint="check image.index.username and password")
    if re.search(
        r"HTTP status|dns error|connection refused|error sending request|timed out|certificate|failed to fetch", text, re.I
    ):
        return RemoteError(f"no package index answers: {reason}", hint="check image.index, image.proxy and image.ca_bundle")
    return ConfigError(
        f"the wheels of this image cannot be resolved: {reason}",
        hint="check image.engine.version, image.python and image.packages, or add what is missing to image.wheelhouse",
    )


def _glibc(image: Image) -> int:
    return next((minor for suite, minor in GLIBC.items() if suite in image.base), OLDEST_GLIBC)


def _tags(image: Image, platform: str) -> Iterable[Tag]:
    """What pip inside the image accepts, best first (PEP 425, PEP 600)."""
    version = tuple(int(part) for part in image.python.split("."))
    machine = MACHINES[platform]
    known = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    accepted = []
    for minor in range(_glibc(image), 4, -1):
        accepted.append(f"manylinux_2_{minor}_{machine}")
        accepted += [f"{known[minor]}_{machine}"] if minor in known else []
    accepted.append(f"linux_{machine}")
    yield from cpython_tags(version, platforms=accepted)
    yield from compatible_tags(version, platforms=accepted)


def _best(package: Mapping[str, Any], ranks: Mapping[Tag, int], base: Path) -> Found:
    """The wheel that pip will take: the lowest rank of its tags."""
    name, version = normal(package["name"]), str(package["version"])
    offered = []
    for wheel in package.get("wheels", ()):
        where = wheel.get("url") or (base / wheel["path"]).resolve().as_uri()
        fits = [ranks[tag] for tag in parse_wheel_filename(unquote(Path(urlsplit(where).path).name))[3] if tag in ranks]
        if fits and "sha256" in wheel.get("hashes", {}):
            offered.append((min(fits), Found(name, version, wheel["hashes"]["sha256"], where, int(wheel.get("size", 0)))))
    if not offered:
        raise ConfigError(
            f"{name}=={version}: no wheel with a sha256 for this image", hint="use another index, or add it to image.wheelhouse"
        )
    return min(offered, key=lambda one: one[0])[1]


def _merge(found: Mapping[str, Mapping[str, Found]], wanted: Sequence[str], environ: Mapping[str, str]) -> list[Wheel]:
    """One entry a distribution, whichever platforms need it; the same version on all."""
    known = sizes.of([one for by in found.values() for one in by.values()], environ)
    wheels = []
    for name, by in sorted(found.items()):
        versions = sorted({one.version for one in by.values()})
        if len(versions) > 1:
            raise ConfigError(f"{name}: {' and '.join(versions)}, by platform", hint="pin one version in image.packages")
        marker = "" if len(by) == len(wanted) else " or ".join(f'platform_machine == "{MACHINES[p]}"' for p in by)
        hashes = tuple(dict.fromkeys(one.sha256 for one in by.values()))
        wheels.append(Wheel(name, versions[0], hashes, max(known[one.url] for one in by.values()), marker))
    return wheels


def _leave_out(found: _ByPlatform, spec: Spec, places: Places) -> tuple[_ByPlatform, tuple[str, ...]]:
    """`found` less image.without and what only those bring along: a second resolution, in which nothing else moves.

    Raises ConfigError for a name that is not there, or that the image is for.
    """
    named = tuple(normal(name) for name in spec.image.without)
    for name in named:
        if name in names(asks(spec)):
            raise ConfigError(f"image.without: {name}: the description itself asks for it", hint="take it out of image.without")
        if name not in found:
            raise ConfigError(
                f"image.without: {name}: not among the {len(found)} wheels of this image", hint=_near(name, found)
            )
    pins = [f"{name}=={next(iter(by.values())).version}" for name, by in found.items() if name not in named]
    kept = _everywhere(asks(spec), spec.image, places, pins, named)
    gone = sorted(name for name in found if name not in kept)
    why = {name: "image.without" if name in named else "only for what image.without names" for name in gone}
    return kept, tuple(f"{name}=={next(iter(found[name].values())).version} ({why[name]})" for name in gone)


def _near(name: str, found: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(found), 1)
    return f"did you mean `{close[0]}`?" if close else "take it out; `builder lock` lists what an image installs"


def _tools(wheels: Sequence[Wheel], image: Image, places: Places) -> tuple[LockLayer, ...]:
    """Wheels that a step of the build runs and no image holds; where the image has the very wheel, the same one."""
    if not tools(image):
        return ()
    name = pruning.CUOBJDUMP.split("==")[0]
    own = [wheel for wheel in wheels if wheel.name == name]
    found = own or _merge(_everywhere([pruning.CUOBJDUMP], image, places), platforms.of(image), places.environ)
    return (LockLayer(pruning.TOOL, tuple(found)),)


def _without(wheels: Sequence[Wheel], plan: Recipe, image: Image) -> tuple[list[Wheel], tuple[str, ...]]:
    """Take out what the recipe names, and libraries for another CUDA: never a second one."""
    major = image.cuda.split(".")[0]

    def why(wheel: Wheel) -> str:
        other = re.search(r"-cu(\d\d)x?$", wheel.name)
        if other and other[1] != major and f"{wheel.name[: other.start()]}-cu{major}" in {one.name for one in wheels}:
            return "for another CUDA"
        return plan.without.get(wheel.name, "")

    kept = [wheel for wheel in wheels if not why(wheel)]
    return kept, tuple(f"{wheel.pin} ({why(wheel)})" for wheel in wheels if why(wheel))


def _require_cuda(wheels: Sequence[Wheel], image: Image) -> None:
    """The CUDA of the wheels is the one that builder.yaml names."""
    for wheel in wheels:
        suffix = re.search(r"^nvidia-cublas(?:-cu(\d\d))?$", wheel.name)
        if suffix:
            major = suffix[1] or wheel.version.split(".")[0]
            if image.cuda.split(".")[0] != major:
                engine = f"{image.engine.name} {image.engine.version}"
                raise ConfigError(
                    f'image.cuda: found "{image.cuda}"; {engine} is published for CUDA {major}',
                    hint=f'set image.cuda to "{major}"',
                )


def _torch_closure(wheels: Sequence[Wheel], image: Image, places: Places) -> frozenset[str]:
    """Names of what torch alone installs, torch among them; empty without torch."""
    torch = next((wheel for wheel in wheels if wheel.name == "torch"), None)
    if torch is None:
        return frozenset()
    asked = f"torch{'==' if '+' in torch.version else '==='}{torch.version}"
    pins = [wheel.pin for wheel in wheels if wheel.name != "torch"]
    return frozenset(one.name for one in _resolve([asked], image, platforms.of(image)[0], places, constraints=pins))
