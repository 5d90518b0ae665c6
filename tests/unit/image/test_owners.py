"""Whose a file is, and the cause it is counted under."""

from __future__ import annotations

import pytest

from builder.image.owners import CAUSES, HIDDEN, Owner, Owners, normal

SITE = "opt/venv/lib/python3.11/site-packages"


def owners(**options: object) -> Owners:
    found = Owners(**options)  # type: ignore[arg-type]
    found.link("lib", "usr/lib")
    rows = '"torch/lib/libtorch.so",sha256=x,9\ntorch/__init__.py,,\n../../../bin/torchrun,,\n"odd,name.py",,\n'
    found.learn(f"{SITE}/torch-2.13.0.dist-info/RECORD", rows.encode())
    found.learn("var/lib/dpkg/info/libc6:amd64.list", b"/.\n/lib\n/lib/x86_64-linux-gnu/libc.so.6\n/usr/share/doc/libc6\n")
    found.learn("var/lib/dpkg/info/python3.11-minimal.list", b"/usr/bin/python3.11\n")
    found.learn("var/lib/dpkg/status.d/tzdata.md5sums", b"0123  usr/share/zoneinfo/UTC\n")
    return found


@pytest.mark.parametrize(
    ("path", "package", "manager", "cause"),
    [
        (f"{SITE}/torch/lib/libtorch.so", "torch", "python", "torch"),
        ("opt/venv/bin/torchrun", "torch", "python", "torch"),
        (f"{SITE}/odd,name.py", "torch", "python", "torch"),
        (f"{SITE}/torch/__pycache__/__init__.cpython-311.pyc", "torch", "python", "bytecode"),
        (f"{SITE}/numpy.libs/libscipy.so", "numpy", "python", "python packages"),
        (f"{SITE}/Some_Thing-1.0.dist-info/METADATA", "some-thing", "python", "python packages"),
        (f"{SITE}/nvidia_cublas-13.1.dist-info/RECORD", "nvidia-cublas", "python", "nvidia"),
        (f"{SITE}/vllm/_C.so", "vllm", "python", "engine"),
        (f"{SITE}/pip/main.py", "pip", "python", "python"),
        (f"{SITE}/__pycache__/x.cpython-311.pyc", "/opt/venv", "path", "bytecode"),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", "libc6", "debian", "system"),
        ("lib/x86_64-linux-gnu/libc.so.6", "libc6", "debian", "system"),
        ("usr/bin/python3.11", "python3.11-minimal", "debian", "python"),
        ("usr/share/zoneinfo/UTC", "tzdata", "debian", "system"),
        ("usr/local/lib/python3.11/ast.py", "/usr/local", "path", "python"),
        ("opt/venv/pyvenv.cfg", "/opt/venv", "path", "python"),
        ("opt/builder/builder/errors.py", "/opt/builder", "path", "builder runtime"),
        ("usr/local/cuda-13.0/lib64/libcudart.so", "/usr/local", "path", "nvidia"),
        ("app/serve.py", "/app", "path", "application"),
        ("etc/passwd", "/etc", "path", "system"),
        ("init", "/init", "path", "system"),
    ],
)
def test_owner_and_cause(path: str, package: str, manager: str, cause: str) -> None:
    found = owners()
    owner = found.owner(path)
    assert (owner.package, owner.manager, found.cause(path, owner)) == (package, manager, cause)
    assert cause in CAUSES


def test_the_version_is_told() -> None:
    assert owners().owner(f"{SITE}/torch/__init__.py") == Owner("torch", "python", "2.13.0")


@pytest.mark.parametrize(("depth", "name"), [(1, "/srv"), (2, "/srv/a"), (9, "/srv/a/b")])
def test_depth_names_what_no_package_owns(depth: int, name: str) -> None:
    assert owners(depth=depth).owner("srv/a/b/file").package == name


def test_a_wheel_of_the_engines_layer_is_the_engine() -> None:
    path = f"{SITE}/mine/a.py"
    assert owners().cause(path, owners().owner(path)) == "python packages"
    assert owners(engine=["mine"]).cause(path, owners().owner(path)) == "engine"


def test_a_later_record_replaces_an_earlier_one() -> None:
    found = owners()
    found.learn(f"{SITE}/torch_cpu-3.dist-info/RECORD", b"torch/__init__.py,,\n")
    assert found.owner(f"{SITE}/torch/__init__.py").package == "torch-cpu"


def test_hidden_is_no_cause_of_a_path() -> None:
    assert owners().cause("etc/passwd", owners().owner("etc/passwd")) != HIDDEN


def test_names_are_compared_as_the_index_does() -> None:
    assert normal("Nvidia_cublas.cu12") == "nvidia-cublas-cu12"
