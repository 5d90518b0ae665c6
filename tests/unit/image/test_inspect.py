"""The scan finds planted secrets and weights wherever an image can hold them, and nothing in an innocent one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from builder.errors import ClaimError, IntegrityError
from builder.image import inspect

# Put together here, so that this file itself holds nothing that looks like a secret.
HF = b"hf_" + b"a1B2" * 9
AWS = b"AKIA" + b"Q7WE" * 4
GITHUB = b"ghp_" + b"x9Y8" * 9
KEY = b"-----BEGIN " + b"RSA PRIVATE KEY-----\n" + b"MIIEow" * 40 + b"\n-----END RSA PRIVATE KEY-----\n"


def layer(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def image(
    path: Path, *layers: dict[str, bytes], config: dict[str, Any] | None = None, compress: bool = True, attested: bool = False
) -> Path:
    """An image archive as BuildKit's OCI exporter writes it. attested: one level deeper, beside a provenance attestation."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    entries = [add(gzip.compress(layer(files), mtime=0) if compress else layer(files)) for files in layers]
    history = [{"created_by": f"COPY step{i} / # buildkit"} for i, _ in enumerate(layers)]
    described = add(json.dumps({"config": {}, "history": history} | (config or {})).encode())
    manifest = add(json.dumps({"config": described, "layers": entries}).encode())
    if attested:
        other = add(b"{}") | {"platform": {"architecture": "unknown", "os": "unknown"}}
        absent = {"digest": "sha256:" + "0" * 64, "platform": {"architecture": "arm64", "os": "linux"}}
        manifest = add(json.dumps({"manifests": [other, absent, manifest]}).encode())
    blobs["index.json"] = json.dumps({"manifests": [manifest]}).encode()
    path.write_bytes(layer(blobs))
    return path


@pytest.mark.parametrize("secret", [HF, AWS, GITHUB, KEY])
@pytest.mark.parametrize("form", [{}, {"compress": False}, {"attested": True}])
def test_a_planted_secret_is_found_and_not_repeated(secret: bytes, form: dict[str, bool], tmp_path: Path) -> None:
    archive = image(tmp_path / "i.tar", {"etc/a": b"fine"}, {"app/x.txt": b"token=" + secret + b"\n"}, **form)
    findings = inspect.scan(archive)
    assert [one.place.rpartition(":")[2] for one in findings] == ["/app/x.txt"]
    with pytest.raises(ClaimError) as caught:
        inspect.require_clean(findings, "r/m:1")
    assert caught.value.exit_code == 7
    assert secret.decode() not in caught.value.message


def test_a_secret_in_a_lower_layer_is_found_though_a_later_one_deletes_it(tmp_path: Path) -> None:
    archive = image(tmp_path / "i.tar", {"app/.env": HF}, {"app/.wh..env": b""})
    assert len(inspect.scan(archive)) == 1


def test_a_secret_across_two_blocks_is_found(tmp_path: Path) -> None:
    data = b"\n" * (inspect.BLOCK - 10) + HF + b"\n"
    assert len(inspect.scan(image(tmp_path / "i.tar", {"big": data}))) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"Env": ["AUTH=" + HF.decode()]}},
        {"config": {"Labels": {"a": AWS.decode()}}},
        {"history": [{"created_by": "RUN curl -H " + GITHUB.decode()}]},
        {"history": [{"created_by": "RUN pip install --index-url https://me:" + "pass" + "@index.example.com/simple x"}]},
    ],
)
def test_a_secret_in_the_configuration_or_history_is_found(config: dict[str, Any], tmp_path: Path) -> None:
    findings = inspect.scan(image(tmp_path / "i.tar", {"a": b""}, config=config))
    assert [one.place for one in findings] == ["configuration or history"]


def test_a_variable_named_like_a_secret_is_found_and_its_value_not_repeated(tmp_path: Path) -> None:
    env = ["PATH=/bin", "DB_PASSWORD=hunter22", "AWS_SECRET_ACCESS_KEY=", "BUILDER_WARMUP_TOKENS=32"]
    [found] = inspect.scan(image(tmp_path / "i.tar", {"a": b"b"}, config={"config": {"Env": env}}))
    assert (found.place, found.detail) == ("environment", "DB_PASSWORD")


@pytest.mark.parametrize("name", ["m/model.safetensors", "m/a.gguf", "M/A.GGUF"])
def test_weights_are_found_by_name_whatever_their_size(name: str, tmp_path: Path) -> None:
    assert [one.kind for one in inspect.scan(image(tmp_path / "i.tar", {name: b"x"}))] == ["model weights"]


def test_a_bin_file_counts_as_weights_from_50_mb(tmp_path: Path) -> None:
    large = b"\0" * inspect.MAYBE_MODEL_BYTES
    found = inspect.scan(image(tmp_path / "i.tar", {"large.bin": large, "small.bin": large[:-1]}))
    assert [one.place.rpartition("/")[2] for one in found] == ["large.bin"]


@pytest.mark.parametrize("name", ["root/.netrc", "home/app/.aws/credentials", "root/.docker/config.json", "run/secrets/ca"])
def test_files_that_hold_credentials_are_found_by_name(name: str, tmp_path: Path) -> None:
    assert len(inspect.scan(image(tmp_path / "i.tar", {name: b"x"}))) == 1
    assert inspect.scan(image(tmp_path / "j.tar", {name: b""})) == []  # an empty mount point


def test_a_password_in_an_index_address_is_found_where_it_is_a_setting(tmp_path: Path) -> None:
    line = b"index-url = https://me:" + b"pass@index.example.com/simple\n"
    found = inspect.scan(image(tmp_path / "i.tar", {"etc/pip.conf": line, "usr/share/doc/readme": line}))
    assert [one.place.rpartition("/")[2] for one in found] == ["pip.conf"]


def test_given_values_are_searched_too(tmp_path: Path) -> None:
    archive = image(tmp_path / "i.tar", {"a": b"..CANARY-1.."})
    assert inspect.scan(archive) == []
    assert len(inspect.scan(archive, also=[b"CANARY-1"])) == 1


def test_an_innocent_image_is_clean(tmp_path: Path) -> None:
    innocent = {
        "lib/tls.so": b"\x7fELF" + KEY,  # the key of a library's own self-test
        "lib/tls.py": b"'-----BEGIN PRIVATE KEY-----'",
        "lib/hub.py": b"from hf_hub import hf_hub_download, hf_raise_for_status",
        "doc/s3.txt": b"AKIA" + b"IOSFODNN7EXAMPLE",
    }
    findings = inspect.scan(image(tmp_path / "i.tar", innocent))
    assert findings == []
    inspect.require_clean(findings, "r/m:1")


def test_the_report_adds_up(tmp_path: Path) -> None:
    files = {"opt/venv/lib/python3.11/site-packages/torch/a.so": b"x" * 1000, "opt/builder/builder/errors.py": b"y" * 10}
    config = {"config": {"User": "10001:0", "Env": ["A=b=c"], "Labels": {"l": "v"}, "Entrypoint": ["p"]}}
    found = inspect.report(image(tmp_path / "i.tar", {"bin/sh": b"z" * 100}, files, config=config), "r/m:1")
    assert found.unpacked == 1110
    assert found.causes == {"package torch": 1000, "system": 100, "builder runtime": 10}
    assert (found.user, found.env, found.labels, found.entrypoint) == ("10001:0", {"A": "b=c"}, {"l": "v"}, ("p",))
    assert [one.made_by for one in found.layers] == ["COPY step0 /", "COPY step1 /"]
    assert found.to_json()["compressed"] == sum(one.compressed for one in found.layers)


@pytest.mark.parametrize("data", [b"", b"not a tar", layer({"readme": b"x"})])
def test_something_else_is_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(IntegrityError, match="not an image archive"):
        inspect.scan(tmp_path / "x")


def test_a_layer_that_is_not_one(tmp_path: Path) -> None:
    archive = image(tmp_path / "i.tar", {"a": b""})
    text = archive.read_bytes().replace(b"\x1f\x8b\x08", b"\x28\xb5\x2f")  # zstd's magic instead of gzip's
    archive.write_bytes(text)
    with pytest.raises(IntegrityError, match="layer cannot be read"):
        inspect.scan(archive)
