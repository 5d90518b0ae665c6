"""The SBOM names what is in the image, once each, by the words of the formats it speaks; and what nobody accounts for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from builder.cli.image import command as image_command
from builder.errors import ClaimError, ConfigError
from builder.image import attest
from builder.image.attest import inventory
from builder.image.attest.names import Image, image_purl, parse
from builder.image.lock import Lock, LockLayer, Wheel, text
from tests.images import file, files, image, link
from tests.oci import tar_layout

SITE = "opt/venv/lib/python3.12/site-packages"
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u14
Depends: libgcc-s1, libcrypt1 (>= 1:4.4.10-10~), missing | other

Package: libgcc-s1
Status: install ok installed
Architecture: amd64
Source: gcc-12 (12.2.0-14)
Version: 12.2.0-14+deb12u1
Depends: libc6 (>= 2.35)
Provides: libgcc1 (= 1:12.2.0)

Package: zlib1g
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 1:1.2.13.dfsg-1
Pre-Depends: nothing | libgcc1:any

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
ZLIB = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: zlib

Files: *
Copyright: 1995-2013 Jean-loup Gailly and Mark Adler
License: Zlib
 Not this line.

Files: amiga/*
Copyright: somebody
License: Expat
"""
BASE = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/libc6:amd64.list": "/.\n/lib\n/lib/libc.so.6\n",
    "var/lib/dpkg/info/zlib1g:amd64.list": "/usr/lib/libz.so.1\n",
    "usr/lib/libc.so.6": "elf",
    "usr/lib/libz.so.1": "elf",
    "usr/share/doc/zlib1g/copyright": ZLIB,
    "usr/share/doc/libc6/copyright": "This is the Debian prepackaged version of the GNU C Library.\n",
}


def dist(name: str, version: str, *head: str, site: str = SITE, also: str = "") -> dict[str, str | bytes]:
    """A distribution with one module, as pip leaves it."""
    module, info = name.lower().replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}", *head]
    record = f"{module}.py,sha256=x,1\n{info}/METADATA,,\n{info}/RECORD,,\n{also}"
    return {
        f"{site}/{module}.py": "x",
        f"{site}/{info}/METADATA": "\n".join(lines) + "\n\nbody\nLicense: no\n",
        f"{site}/{info}/RECORD": record,
    }


WHEELS = (
    dist("Torch", "2.13.0+cpu", "License: BSD-3-Clause", "Requires-Dist: typing-extensions", also="../../../bin/torchrun,,\n")
    | dist("typing_extensions", "4.16.0", "License-Expression: PSF-2.0", "License: ignored")
    | dist("serve", "1.0", "Classifier: License :: OSI Approved :: MIT License", 'Requires-Dist: uvloop; extra == "fast"',
           "Requires-Dist: torch>=2", 'Requires-Dist: lone; python_version < "3.9"')
    | dist("uvloop", "0.21", "License: MIT OR Apache-2.0")
    | dist("lone", "3")
    | {f"{SITE}/torch/native.so": "elf", "opt/venv/bin/torchrun": "#!", "opt/venv/pyvenv.cfg": "version = 3.12.4\n",
       f"{SITE}/__pycache__/torch.cpython-312.pyc": "x", f"{SITE}/__pycache__/alien.cpython-312.pyc": "x"}
)  # fmt: skip
OURS = {
    "opt/builder/builder/__init__.py": '__version__ = "0.1.0"\n',
    "opt/builder/layers/engine.json": json.dumps(
        {
            "layer": "engine",
            "packages": {"torch": {"version": "2.13.0+cpu", "installed_bytes": 900, "kept_bytes": 300, "files": 3}},
        }
    ),
    "opt/builder/layers/odd.json": '{"packages": [1]}',
}
LABELS = {
    "org.opencontainers.image.base.name": "debian:bookworm-slim",
    "org.opencontainers.image.title": "tiny",
    "builder.manifest": "sha256:" + "5" * 64,
}
NAME = "registry.example.com:5000/llm/tiny:v1"
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def lock(*more: Wheel, drop: str = "", asks: tuple[str, ...] = ("serve[fast]==1.0",)) -> Lock:
    wheels = [
        Wheel("torch", "2.13.0+cpu", (A,)),
        Wheel("typing-extensions", "4.16.0", (B,)),
        Wheel("serve", "1.0", (C,)),
        Wheel("uvloop", "0.21", (C, D)),
        Wheel("lone", "3", (D,)),
        Wheel("colorama", "0.4", (A,), marker='sys_platform == "win32"'),
        *more,
    ]
    return Lock("tiny", "3.12", ("linux/amd64",), asks, (LockLayer("engine", tuple(w for w in wheels if w.name != drop)),))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    base = [link("lib", "usr/lib"), *files(BASE)]
    image(tmp_path / "i", base, files(WHEELS), files(OURS), pack="zstd", config={"Labels": LABELS}, name=NAME)
    return tmp_path / "i"


def described(layout: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(attest.describe(layout, **options).sbom)
    return found


def parts(sbom: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in sbom["components"]}


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("builder:"): one["value"] for one in component.get("properties", ())}


def needs(sbom: dict[str, Any]) -> dict[str, list[str]]:
    names = {one["bom-ref"]: one["name"] for one in [*sbom["components"], sbom["metadata"]["component"]]}
    return {names[one["ref"]]: sorted(names[ref] for ref in one.get("dependsOn", ())) for one in sbom["dependencies"]}


def test_it_is_strictly_cyclonedx_1_6(layout: Path) -> None:
    found = attest.describe(layout, lock=lock(), base_digest="sha256:" + B)
    assert json.loads(found.sbom)["specVersion"] == "1.6"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(found.sbom) is None
    broken = found.sbom.replace('"type": "library"', '"type": "thing"', 1)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None  # the validator can fail


def test_the_same_image_gives_the_same_bytes_in_another_process_and_from_an_archive(layout: Path) -> None:
    program = (
        "import sys, pathlib; from builder.image import attest; print(attest.describe(pathlib.Path(sys.argv[1])).sbom, end='')"
    )
    said = set()
    for seed, place in (("1", layout), ("2", tar_layout(layout, layout.with_suffix(".tar")))):
        env = os.environ | {"PYTHONHASHSEED": seed}
        said.add(subprocess.run([sys.executable, "-c", program, place], env=env, capture_output=True, check=True).stdout)
    assert said == {attest.describe(layout).sbom.encode()}


def test_another_image_has_another_serial_number(layout: Path, tmp_path: Path) -> None:
    image(tmp_path / "other", files(BASE))
    assert described(layout)["serialNumber"] != described(tmp_path / "other")["serialNumber"]
    assert described(layout)["metadata"]["timestamp"].startswith("2026-01-02T03:04:05")


def test_packages_have_the_names_of_their_own_world(layout: Path) -> None:
    found = parts(described(layout))
    wheels = {"torch", "typing-extensions", "serve", "uvloop", "lone"}
    assert set(found) == wheels | {"debian", "docker.io/library/debian", "coldstart-builder", "libc6", "libgcc-s1", "zlib1g"}
    assert found["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert found["typing-extensions"]["purl"] == "pkg:pypi/typing-extensions@4.16.0"
    assert found["zlib1g"]["purl"] == "pkg:deb/debian/zlib1g@1:1.2.13.dfsg-1?arch=amd64&distro=debian-12"
    assert found["libc6"]["purl"].endswith("?arch=amd64&distro=debian-12&upstream=glibc")
    assert "upstream=gcc-12%4012.2.0-14" in found["libgcc-s1"]["purl"]
    assert properties(found["libgcc-s1"]) == {"found-by": "dpkg", "deb:source": "gcc-12", "deb:source-version": "12.2.0-14"}
    assert (found["debian"]["type"], found["debian"]["version"]) == ("operating-system", "12")
    assert (found["coldstart-builder"]["type"], found["coldstart-builder"]["version"]) == ("application", "0.1.0")


def test_the_image_has_its_registry_name_and_digest(layout: Path) -> None:
    sbom = described(layout, base_digest="sha256:" + B)
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    top = sbom["metadata"]["component"]
    assert (top["type"], top["name"], top["version"]) == ("container", "registry.example.com:5000/llm/tiny", digest)
    assert top["purl"].startswith(f"pkg:oci/tiny@{digest}?arch=amd64&repository_url=registry.example.com:5000/llm/tiny")
    assert properties(top)["manifest"] == "sha256:" + "5" * 64
    base = parts(sbom)["docker.io/library/debian"]
    assert base["purl"] == f"pkg:oci/debian@sha256:{B}?repository_url=docker.io/library/debian&tag=bookworm-slim"
    assert "purl" not in parts(described(layout))["docker.io/library/debian"]  # no digest, no identity


def test_licences_are_what_the_packages_declare(layout: Path) -> None:
    said = {
        name: [one.get("expression") or one["license"].get("id") or one["license"]["name"] for one in part.get("licenses", ())]
        for name, part in parts(described(layout)).items()
    }
    assert said["torch"] == ["BSD-3-Clause"]
    assert said["typing-extensions"] == ["PSF-2.0"]  # not the older field beside it
    assert said["serve"] == ["MIT"]
    assert said["uvloop"] == ["MIT OR Apache-2.0"]
    assert said["lone"] == []  # what stands in the body of METADATA is no field
    assert said["zlib1g"] == ["Zlib"]
    assert said["libc6"] == []


def test_what_the_lock_pins_has_its_hash(layout: Path) -> None:
    found = parts(described(layout, lock=lock()))
    assert found["torch"]["hashes"] == [{"alg": "SHA-256", "content": A}]
    assert properties(found["torch"])["lock"] == "pinned"
    assert "hashes" not in found["uvloop"]  # two platforms' wheels: which one, the image does not say
    assert [p["value"] for p in found["uvloop"]["properties"] if p["name"] == "builder:wheel:sha256"] == [C, D]
    assert "hashes" not in parts(described(layout))["torch"]


def test_a_wheel_tells_what_was_left_out_of_it(layout: Path) -> None:
    found = properties(parts(described(layout))["torch"])
    assert (found["layer"], found["installed-bytes"], found["kept-bytes"]) == ("engine", "900", "300")


def test_dependencies_hang_on_the_image(layout: Path) -> None:
    found = needs(described(layout, lock=lock()))
    top = "registry.example.com:5000/llm/tiny"
    assert found[top] == ["coldstart-builder", "debian", "docker.io/library/debian", "lone", "serve"]
    assert found["serve"] == ["torch", "uvloop"]  # the extra was asked for; lone is for another Python
    assert found["torch"] == ["typing-extensions"]
    assert found["docker.io/library/debian"] == ["debian"]
    assert found["debian"] == ["libc6", "libgcc-s1", "zlib1g"]
    assert found["libc6"] == ["libgcc-s1"]
    assert found["zlib1g"] == ["libgcc-s1"]  # by what it provides


def test_an_extra_that_nobody_asked_for_is_no_dependency(layout: Path) -> None:
    found = needs(described(layout, lock=lock(asks=("serve==1.0",))))
    assert found["serve"] == ["torch"]
    assert "uvloop" in found["registry.example.com:5000/llm/tiny"]  # it is there, so it hangs somewhere


def test_an_extra_leads_to_further_extras_and_rings_of_them_end(tmp_path: Path) -> None:
    wheels = dist("a", "1", "Requires-Dist: b[x]") | dist("c", "1")
    wheels |= dist(
        "b", "1", 'Requires-Dist: c; extra == "x"', 'Requires-Dist: b[y]; extra == "x"', 'Requires-Dist: b[x]; extra == "y"'
    )
    image(tmp_path / "i", files(wheels))
    found = needs(described(tmp_path / "i"))
    assert (found["image"], found["a"], found["b"]) == (["a"], ["b"], ["c"])


def test_a_ring_of_dependencies_hangs_on_the_image_too(tmp_path: Path) -> None:
    image(tmp_path / "i", files(dist("a", "1", "Requires-Dist: b") | dist("b", "1", "Requires-Dist: a")))
    assert needs(described(tmp_path / "i"))["image"] == ["a"]


def test_files_that_nobody_accounts_for_are_counted_and_named(layout: Path) -> None:
    sbom = described(layout)
    named = [p["value"] for p in sbom["metadata"]["component"]["properties"] if p["name"] == "builder:unowned:file"]
    # Not there: libc.so.6, which dpkg lists below the link /lib; torch's own bytecode; what RECORD lists outside its folder.
    assert named == [
        "etc/os-release",
        f"{SITE}/__pycache__/alien.cpython-312.pyc",
        f"{SITE}/torch/native.so",
        "opt/venv/pyvenv.cfg",
        "usr/share/doc/libc6/copyright",
        "usr/share/doc/zlib1g/copyright",
    ]
    assert properties(sbom["metadata"]["component"])["unowned:count"] == "6"


def test_a_long_list_of_files_is_cut_and_its_count_is_not(tmp_path: Path) -> None:
    from builder.image.attest import sbom

    image(tmp_path / "i", [file(f"srv/{number}") for number in range(sbom.LISTED + 5)])
    top = described(tmp_path / "i")["metadata"]["component"]["properties"]
    assert sum(one["name"] == "builder:unowned:file" for one in top) == sbom.LISTED
    assert {"name": "builder:unowned:count", "value": str(sbom.LISTED + 5)} in top


def test_what_dpkg_installed_is_not_counted_twice(tmp_path: Path) -> None:
    """Debian's own Python packages have a dist-info too."""
    site = "usr/lib/python3/dist-packages"
    listed = "".join(f"/{path}\n" for path in dist("six", "1.16.0", site=site))
    status = "Package: python3-six\nStatus: install ok installed\nArchitecture: all\nVersion: 1.16.0-4\n"
    own = {"var/lib/dpkg/status": status, "var/lib/dpkg/info/python3-six.list": listed}
    image(tmp_path / "i", files(dist("six", "1.16.0", site=site) | own))
    assert list(parts(described(tmp_path / "i"))) == ["python3-six"]


def test_a_deleted_package_is_not_in_it(tmp_path: Path) -> None:
    info = f"{SITE}/lone-3.dist-info"
    image(tmp_path / "i", files(WHEELS), [file(f"{SITE}/.wh.lone-3.dist-info"), file(f"{SITE}/.wh.lone.py")])
    found = attest.describe(tmp_path / "i")
    assert "lone" not in parts(json.loads(found.sbom))
    assert info not in found.sbom


def test_a_distroless_image_has_its_packages(tmp_path: Path) -> None:
    sums = "00000000000000000000000000000000  usr/lib/libz.so.1\n"
    stanza = "Package: zlib1g\nArchitecture: amd64\nVersion: 1:1.2.13.dfsg-1\n"
    image(
        tmp_path / "i",
        files({"var/lib/dpkg/status.d/zlib1g": stanza, "var/lib/dpkg/status.d/zlib1g.md5sums": sums, "usr/lib/libz.so.1": ""}),
    )
    found = attest.describe(tmp_path / "i")
    assert list(parts(json.loads(found.sbom))) == ["zlib1g"]
    assert found.unowned == 0


def test_two_versions_in_two_places_are_two_components(tmp_path: Path) -> None:
    other = "usr/local/lib/python3.12/site-packages"
    image(
        tmp_path / "i",
        files(dist("pip", "25", site=other) | dist("pip", "26") | dist("serve", "1", site=other) | dist("serve", "1")),
    )
    found = described(tmp_path / "i")
    assert [(one["name"], one["version"]) for one in found["components"]] == [("pip", "25"), ("pip", "26"), ("serve", "1")]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (lock(), []),
        (lock(drop="lone"), ["lone 3 is in the image, not in the lock"]),
        (lock(Wheel("more", "1", (A,))), ["more 1 is in the lock, not in the image"]),
        (lock(Wheel("torch", "2.12.0", (A,)), drop="torch"), ["torch 2.13.0+cpu is in the image, not in the lock"]),
    ],
)
def test_the_lock_is_held_against_the_image(held: Lock, said: list[str], layout: Path) -> None:
    found = attest.describe(layout, lock=held)
    assert [str(one) for one in found.mismatches] == said
    if not said:
        attest.require_match(found.mismatches, NAME)
        return
    with pytest.raises(ClaimError) as caught:
        attest.require_match(found.mismatches, NAME)
    assert caught.value.exit_code == 7
    assert said[0] in caught.value.message


def test_another_version_is_said_as_such(layout: Path) -> None:
    wheels = tuple(Wheel("torch", "2.12.0", (A,)) if w.name == "torch" else w for w in lock().wheels)
    held = Lock("tiny", "3.12", ("linux/amd64",), (), (LockLayer("engine", wheels),))
    found = attest.describe(layout, lock=held)
    assert [str(one) for one in found.mismatches] == ["torch is 2.12.0 in the lock, 2.13.0+cpu in the image"]
    assert "hashes" not in parts(json.loads(found.sbom))["torch"]  # the hash is of another version


def test_what_the_base_image_brings_is_not_held_against_the_lock(tmp_path: Path) -> None:
    other = dist("pip", "25", site="usr/local/lib/python3.12/site-packages")
    image(tmp_path / "i", files(other), files(WHEELS))
    found = attest.describe(tmp_path / "i", lock=lock())
    assert found.mismatches == ()
    assert "pip" in parts(json.loads(found.sbom))


def test_markers_are_read_for_the_image_and_not_for_this_machine(tmp_path: Path) -> None:
    arm = Wheel("arm-only", "1", (A,), marker='platform_machine == "aarch64" and python_full_version >= "3.12.4"')
    for arch, said in (("amd64", ()), ("arm64", ("arm-only 1 is in the lock, not in the image",))):
        image(tmp_path / arch, files(WHEELS), architecture=arch)
        assert tuple(map(str, attest.describe(tmp_path / arch, lock=lock(arm)).mismatches)) == said


@pytest.mark.parametrize(
    ("reference", "repository", "name"),
    [
        ("debian:bookworm-slim", "debian", "docker.io/library/debian"),
        ("llm/tiny", "llm/tiny", "docker.io/llm/tiny"),
        ("localhost:5000/tiny:v1", "localhost:5000/tiny", "localhost:5000/tiny"),
        (f"registry.example.com/a/b:v1@sha256:{A}", "registry.example.com/a/b", "registry.example.com/a/b"),
    ],
)
def test_references_are_read_as_docker_reads_them(reference: str, repository: str, name: str) -> None:
    found = parse(reference)
    assert (found.repository, found.name, str(found)) == (repository, name, reference)


def test_an_image_without_a_repository_has_no_address() -> None:
    assert image_purl(Image(digest="sha256:" + A), title="tiny").to_string() == f"pkg:oci/tiny@sha256:{A}"


def run(*words: str) -> Any:
    return CliRunner().invoke(image_command, ["sbom", *words], catch_exceptions=False, standalone_mode=False)


def test_the_command_prints_the_document_and_warns_beside_it(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(text(lock(drop="lone")))
    done = run(str(layout), "--lock", str(tmp_path / "requirements.lock"))
    assert json.loads(done.stdout)["bomFormat"] == "CycloneDX"
    assert done.stdout == attest.describe(layout, lock=lock(drop="lone")).sbom
    assert done.stderr == "warning: lone 3 is in the image, not in the lock\n"
    assert json.loads(run(str(layout), "--format", "json").stdout) == described(layout)


@pytest.mark.parametrize("body", [None, "torch==2\n"])
def test_a_lock_that_cannot_be_read_is_refused(body: str | None, layout: Path, tmp_path: Path) -> None:
    if body is not None:
        (tmp_path / "x.lock").write_text(body)
    with pytest.raises(ConfigError, match=r"x\.lock"):
        run(str(layout), "--lock", str(tmp_path / "x.lock"))


def test_the_command_writes_a_file(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    done = run(str(layout), "-o", str(out), "--format", "json")
    assert out.read_text() == attest.describe(layout).sbom
    assert json.loads(done.stdout) == {
        "path": str(out), "digest": json.loads((layout / "index.json").read_text())["manifests"][0]["digest"],
        "components": 11, "unowned": 6, "mismatches": [],
    }  # fmt: skip


def test_the_path_of_an_archive_is_not_in_its_document(layout: Path) -> None:
    assert str(layout) not in attest.describe(layout).sbom
    assert layout.parts[-2] not in run(str(layout)).stdout


def test_documents_are_written_side_by_side(layout: Path, tmp_path: Path) -> None:
    found = attest.describe(layout)
    assert [path.name for path in found.write(tmp_path / "new" / "folder")] == ["sbom.cdx.json"]
    assert (tmp_path / "new" / "folder" / "sbom.cdx.json").read_text() == found.sbom


def test_an_inventory_needs_nothing_but_files(tmp_path: Path) -> None:
    image(tmp_path / "i", files({"app": "x"}))
    found = inventory.take(tmp_path / "i")
    assert (found.debs, found.dists, found.os, found.runtime, found.unowned) == ((), (), {}, "", ("app",))
