"""Whose a file is: the package that installed it, by the package manager's own records; and the cause it is counted under.

Sources: PyPA "Recording installed projects" (dist-info/RECORD: CSV of path, hash, size; paths relative to site-packages);
dpkg(1), "FILES" (/var/lib/dpkg/info/NAME.list: one absolute path a line); distroless images keep
/var/lib/dpkg/status.d/NAME.md5sums instead. Pure.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass

RECORDS = re.compile(
    r"(?P<site>.+/(?:site|dist)-packages)/(?P<dist>[^/]+)\.dist-info/RECORD"
    r"|var/lib/dpkg/(?:info/(?P<deb>[^/:]+)(?::[^/]+)?\.list|status\.d/(?P<less>[^/]+)\.md5sums)"
)
HIDDEN = "hidden by a later layer"
BYTECODE, RUNTIME, ENGINE, NVIDIA, TORCH = "bytecode", "builder runtime", "engine", "nvidia", "torch"
PYTHON, LIBRARIES, SYSTEM, APPLICATION = "python", "python packages", "system", "application"
CAUSES = (NVIDIA, TORCH, ENGINE, LIBRARIES, PYTHON, BYTECODE, RUNTIME, APPLICATION, SYSTEM, HIDDEN)
_ENGINES = re.compile(
    r"vllm|sglang|transformers|xllamacpp|llama-cpp-python|tensorrt(-llm|-cu\d+.*)?|onnxruntime(-gpu|-genai.*)?|tritonserver"
    r"|(vllm-)?flash-attn.*|flashinfer-.*|sgl-kernel|sglang-kernel|ctranslate2|text-generation.*|lmdeploy|mlc-llm.*"
)
_NVIDIA = re.compile(r"nvidia-.*|cuda-.*|cupy-cuda.*|libcu.*|libnv.*|libnccl.*|cutlass.*|pynvvideocodec")
_TORCH = re.compile(r"torch|torchvision|torchaudio|torchcodec|triton|torchao|pytorch-.*")
_SITE = re.compile(r"(?P<site>.+/(?:site|dist)-packages)/(?P<top>[^/]+)")
_PYTHON = re.compile(
    r"(usr/(local/)?)?lib/(python3|libpython3)|usr/(local/)?bin/(python|pip|pydoc|idle|2to3)|opt/(venv|pip)(/|$)"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """package: as its manager calls it; a path where no package owns the file. manager: python, debian or path."""

    package: str
    manager: str
    version: str = ""


class Owners:
    """Learns from the records of package managers, in the order of the layers; then answers for any path."""

    def __init__(self, depth: int = 2, engine: Collection[str] = ()) -> None:
        self.depth = depth
        self.engine = engine
        self._owners: dict[str, Owner] = {}
        self._links: dict[str, str] = {}

    def link(self, path: str, target: str) -> None:
        """A symbolic link of the root folder: Debian's lib is usr/lib, and its records name either."""
        if "/" not in path and target.strip("/"):
            self._links[path] = posixpath.normpath(target.strip("/"))

    def learn(self, path: str, data: bytes) -> None:
        """The record `path`, one that RECORDS matches."""
        match = RECORDS.fullmatch(path)
        if not match:
            return
        text = data.decode(errors="replace")
        if match["dist"]:
            name, _, version = match["dist"].partition("-")
            owner = Owner(normal(name), "python", version)
            for row in csv.reader(text.splitlines()):
                if row:
                    self._own(posixpath.normpath(posixpath.join(match["site"], row[0])), owner)
        elif match["deb"]:
            owner = Owner(match["deb"], "debian")
            for line in text.splitlines():
                self._own(line, owner)
        else:
            owner = Owner(match["less"], "debian")
            for line in text.splitlines():
                self._own(line.partition("  ")[2], owner)

    def owner(self, path: str) -> Owner:
        """Bytecode belongs to the package of its source."""
        path = self.real(path)
        found = self._owners.get(path) or self._owners.get(_source(path))
        if found:
            return found
        site = _SITE.match(path)
        if site and not site["top"].startswith("_"):
            return Owner(normal(re.split(r"-\d|\.", site["top"])[0].removesuffix("_libs")), "python")
        parts = path.split("/")
        return Owner("/" + "/".join(parts[: max(1, min(self.depth, len(parts) - 1))]), "path")

    def real(self, path: str) -> str:
        """`path` without a link of the root folder in it."""
        first, slash, rest = path.partition("/")
        return self._links[first] + slash + rest if first in self._links else path

    def cause(self, path: str, owner: Owner) -> str:
        """One of CAUSES, or any but HIDDEN."""
        if path.endswith(".pyc"):
            return BYTECODE
        if path.startswith("opt/builder/"):
            return RUNTIME
        if owner.manager == "python":
            return self._wheel(owner.package)
        if owner.manager == "debian":
            return _debian(owner.package)
        if re.match(r"usr/local/(cuda|nvidia)|opt/nvidia/", path):
            return NVIDIA
        if _PYTHON.match(path):
            return PYTHON
        return APPLICATION if re.match(r"(opt|srv|app|home|workspace|models?)/", path) else SYSTEM

    def _wheel(self, name: str) -> str:
        if name in ("pip", "setuptools", "wheel"):
            return PYTHON
        if name in self.engine or _ENGINES.fullmatch(name):
            return ENGINE
        return NVIDIA if _NVIDIA.fullmatch(name) else TORCH if _TORCH.fullmatch(name) else LIBRARIES

    def _own(self, path: str, owner: Owner) -> None:
        self._owners[self.real(path.strip("/"))] = owner


def _debian(name: str) -> str:
    if re.match(r"(lib)?python3", name):
        return PYTHON
    return NVIDIA if re.match(r"cuda-|libcudnn|libcublas|libnccl|libnvinfer|nvidia-", name) else SYSTEM


def _source(path: str) -> str:
    """
    >>> _source("a/__pycache__/b.cpython-311.opt-1.pyc"), _source("a/b.pyc"), _source("a/b.so")
    ('a/b.py', 'a/b.py', '')
    """
    if not path.endswith(".pyc"):
        return ""
    folder, _, name = path.rpartition("/")
    if folder.endswith("__pycache__"):
        return f"{folder[: -len('__pycache__')]}{name.split('.')[0]}.py"
    return path[:-1]


def normal(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503).

    >>> normal("Nvidia_cublas.cu12")
    'nvidia-cublas-cu12'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
