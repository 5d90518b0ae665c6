"""Who may import whom. A new package is a new line here; imports point down, and neighbours never import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "builder"
BASE = {"", "errors", "units", "process", "progress", "resources"}  # "": the version, in builder/__init__.py
SHIPPED = ("__init__.py", "errors.py", "format", "transfer", "runtime")

MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "units": set(),
    "process": {"errors"},
    "progress": set(),
    "resources": {"errors"},
    "sarif": set(),
    "format": {"", "errors", "format"},
    "transfer": {"", "errors", "format", "transfer"},
    "runtime": {"", "errors", "format", "transfer", "runtime"},
    "slim": {"", "errors", "slim"},
    "config": BASE | {"format", "config"},
    "doctor": BASE | {"stores", "image"},
    "render": BASE | {"format", "render"},
    "models": BASE | {"format", "transfer", "models"},
    "stores": BASE | {"format", "transfer", "stores"},
    "engines": BASE | {"format", "engines"},
    "weights": BASE | {"format", "transfer", "models", "stores", "engines", "weights"},
    "image": BASE | {"format", "slim", "config", "render", "sarif", "image"},
    "node": BASE | {"format", "transfer", "config", "render", "sarif", "node"},
    "verify": BASE | {"format", "transfer", "config", "render", "runtime", "verify"},
}
MAY_IMPORT["pipeline"] = set().union(*MAY_IMPORT.values()) - {"runtime"}
MAY_IMPORT["demo"] = MAY_IMPORT["pipeline"] | {"pipeline", "doctor"}
MAY_IMPORT["cli"] = MAY_IMPORT["demo"] | {"demo", "cli"}

# A third-party library, and the only files that may import it.
PINNED = {
    "boto3": {"stores/s3.py", "node/ebs.py"},
    "botocore": {"stores/s3.py", "node/ebs.py"},
    "docker": {"image/", "verify/"},
    "testcontainers": {"verify/"},
    "huggingface_hub": {"models/hub.py", "models/hub_http.py"},
    "ray": {"engines/ray.py"},
    "click": {"cli/"},
    "rich": {"cli/"},
    "jinja2": {"render.py"},
    "yaml": {"config/", "node/", "cli/init.py"},
    "pydantic": {"config/"},
    "pydantic_core": {"config/"},
    "obstore": {"transfer/", "stores/s3.py"},
    "awscrt": {"transfer/checksum.py"},
    "xllamacpp": {"runtime/llamacpp.py"},
    "onnxruntime": {"runtime/onnxruntime.py"},
    "numpy": {"runtime/v2_tensors.py"},
    "cryptography": {"weights/sign.py"},
    "cyclonedx": {"image/attest/"},
    "packageurl": {"image/attest/"},
    "pytest": {"verify/fixtures.py"},
    "grpc": {"node/proof/cri.py"},
    "google": {"node/proof/api.py"},
    "backports": {"image/stream.py"},
}

FILES = sorted(ROOT.rglob("*.py"))


def unit(path: Path) -> str:
    """The package or top-level module a file belongs to."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> Iterator[str]:
    """Every module the file imports, at any depth, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    """`builder.format.manifest.Chunk` -> format; `builder.__version__` -> ''."""
    part = module.split(".")[1] if "." in module else ""
    return part if (ROOT / part).is_dir() or (ROOT / f"{part}.py").is_file() else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    allowed = MAY_IMPORT[unit(path)]
    wrong = sorted({m for m in imports(path) if m.split(".")[0] == "builder" and top(m) not in allowed})
    assert not wrong, f"{path.relative_to(ROOT)} may not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    for module in imports(path):
        places = PINNED.get(module.split(".")[0])
        assert places is None or any(name == p or (p.endswith("/") and name.startswith(p)) for p in places), f"{name}: {module}"


def test_the_table_knows_every_package() -> None:
    assert {unit(p) for p in FILES} <= set(MAY_IMPORT)


def test_only_the_command_line_prints_or_exits() -> None:
    for path in FILES:
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("print", "sys.exit", "exit", "quit", "os._exit"):
                assert name.startswith(("cli/", "runtime/")), f"{name}:{node.lineno}: {called}"


def test_only_settings_and_borders_read_the_environment() -> None:
    allowed = {"runtime/settings.py", "runtime/__main__.py"}
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if name.startswith("cli/") or name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
                raise AssertionError(f"{name}:{node.lineno}: os.environ")
