"""The scan finds planted secrets and weights wherever an image can hold them, and nothing in an innocent one."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from click.testing import CliRunner

from builder.cli.image import command
from builder.errors import ClaimError, IntegrityError
from builder.image import magic, scan
from builder.image.finding import Finding, require_clean
from builder.image.scan import scan_image
from builder.image.stream import BLOCK
from tests.images import PACKERS, Layout, image, layer
from tests.secrets import SECRETS

HF = SECRETS["Hugging Face token"][0]
AWS = SECRETS["AWS access key"][0]
KEY = SECRETS["private key"][0]
URL = b"https://me:" + b"opensesame@index.example.com/simple"


def found(path: Path, **options: Any) -> list[Finding]:
    return list(scan_image(path, "r/m:1", **options).findings)


def paths(path: Path, **options: Any) -> list[str]:
    return [one.path for one in found(path, **options)]


def zipped(files: dict[str, bytes], *, packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


# ---- every kind of leak, in every kind of place


def test_every_kind_in_every_place_is_found_and_no_value_is_told(tmp_path: Path) -> None:
    """The seeded image: each kind in a file, deleted by a later layer; in the middle of a block's border; in archives."""
    values = [(kind, number, value) for kind, rows in SECRETS.items() for number, value in enumerate(rows)]
    loose = {f"app/{n}-{i}.txt": b"a = " + value + b"\n" for n, (_, i, value) in enumerate(values)}
    border = {f"big/{n}-{i}": b"\n" * (BLOCK - len(value) // 2) + value + b"\n" for n, (_, i, value) in enumerate(values)}
    wheel = {"x-1-py3-none-any.whl": zipped({f"x/{n}-{i}": value for n, (_, i, value) in enumerate(values)})}
    gone = {f"app/.wh.{name.rpartition('/')[2]}": b"" for name in loose}
    path = image(tmp_path / "i", loose, border, wheel, gone, packed="+zstd")
    findings = found(path)
    for n, (kind, i, _) in enumerate(values):
        for place in (f"app/{n}-{i}.txt", f"big/{n}-{i}", f"x-1-py3-none-any.whl!x/{n}-{i}"):
            assert [one.kind for one in findings if one.path == place and one.kind == kind] == [kind], place
    done = CliRunner().invoke(command, ["scan", str(path), "--format", "json"])
    told = json.loads(done.stdout)
    assert isinstance(done.exception, ClaimError)
    assert done.exception.exit_code == 7
    for _, _, value in values:
        assert value.decode() not in done.output + done.exception.message + json.dumps(told) + str(findings)
    row = next(one for one in told["findings"] if one["path"] == "app/0-0.txt")
    assert row["layer"].startswith("sha256:")
    assert row["made_by"] == "COPY step0 /"
    assert told["error"]["exit"] == 7


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("form", ["oci", "folder", "attested", "docker"])
def test_in_every_form_of_archive(form: str, packed: str, tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", {"a": b"fine"}, {"app/x": HF}, form=form, packed=packed)) == ["app/x"]


def test_each_finding_names_layer_and_line(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": b"fine"}, {"app/x": HF})
    [one] = found(path)
    assert (one.kind, one.place, one.path, one.made_by) == ("Hugging Face token", "layer", "app/x", "COPY step1 /")
    with pytest.raises(ClaimError) as caught:
        require_clean([one], "r/m:1")
    assert one.layer[:19] in caught.value.message
    assert "COPY step1 /" in caught.value.message
    assert caught.value.where["findings"] == [one.to_json()]


# ---- the image's own documents


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"config": {"Env": ["AUTH=" + HF.decode()]}}, ["environment"]),
        ({"config": {"Env": ["AUTH=" + base64.b64encode(b"user:" + HF).decode()]}}, ["environment"]),
        ({"config": {"Env": ["DB=" + URL.decode()]}}, ["environment"]),
        ({"config": {"Labels": {"a": AWS.decode()}}}, ["label"]),
        ({"config": {"Labels": {AWS.decode(): "a"}}}, ["label"]),
        ({"config": {"Entrypoint": ["serve", "--key", HF.decode()]}}, ["entrypoint"]),
        ({"config": {"Cmd": ["sh", "-c", f"curl -H {HF.decode()} x"]}}, ["command"]),
        ({"config": {"Healthcheck": {"Test": ["CMD", HF.decode()]}}}, ["configuration"]),
        ({"author": HF.decode()}, ["configuration"]),
        ({"history": [{"created_by": "RUN curl -H " + HF.decode()}]}, ["history"]),
        ({"history": [{"created_by": "RUN pip install --index-url " + URL.decode() + " x"}]}, ["history"]),
        ({"history": [{"comment": HF.decode(), "empty_layer": True}]}, ["history"]),
        ({"history": [{"created_by": "RUN |1 NPM_TOKEN=s3cret-value /bin/sh -c npm ci"}]}, ["history"]),
        ({"history": [{"created_by": "ENV DB_PASSWORD=hunter22"}]}, ["history"]),
    ],
)
def test_a_secret_in_the_configuration_is_found(config: dict[str, Any], places: list[str], tmp_path: Path) -> None:
    findings = found(image(tmp_path / "i", {"a": b""}, config=config))
    assert [one.place for one in findings] == places
    assert all("hunter22" not in str(one) and "s3cret" not in str(one) and "opensesame" not in str(one) for one in findings)


@pytest.mark.parametrize(
    "line",
    ["RUN HF_TOKEN=$(cat /run/secrets/hf) pull", "RUN HF_TOKEN=/run/secrets/hf pull", "ARG NPM_TOKEN", "ENV MAX_TOKEN=4096",
     "ENV MAX_TOKENS=many-of-them", "ENV USE_API_KEY=true", "RUN TOKEN=\"$X\" x"],
)  # fmt: skip
def test_a_reference_to_a_secret_is_none(line: str, tmp_path: Path) -> None:
    assert found(image(tmp_path / "i", {"a": b""}, config={"history": [{"created_by": line}]})) == []


def test_a_line_of_history_is_shown_without_its_secrets(tmp_path: Path) -> None:
    line = f"RUN |1 API_TOKEN=s3cret-value /bin/sh -c curl {URL.decode()} {HF.decode()}"
    findings = found(image(tmp_path / "i", {"x": HF}, config={"history": [{"created_by": line}]}))
    shown = next(one for one in findings if one.place == "layer").made_by
    assert "API_TOKEN=(hidden)" in shown
    assert all(secret not in shown for secret in ("s3cret", "opensesame", HF.decode()))


def test_a_variable_named_like_a_secret_is_found_and_its_value_not_repeated(tmp_path: Path) -> None:
    env = ["PATH=/bin", "DB_PASSWORD=hunter22", "AWS_SECRET_ACCESS_KEY=", "BUILDER_WARMUP_TOKENS=32"]
    [one] = found(image(tmp_path / "i", {"a": b"b"}, config={"config": {"Env": env}}))
    assert (one.place, one.detail) == ("environment", "DB_PASSWORD")


def test_annotations_and_attestations_are_searched(tmp_path: Path) -> None:
    layout = Layout()
    manifest = layout.image([layer({"a": b""})])
    statement = layout.add(b'{"buildArgs": {"X": "' + HF + b'"}}', "application/vnd.in-toto+json")
    other = layout.add({"config": layout.add({}), "layers": [statement]})
    other["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    layout.index(manifest | {"annotations": {"note": AWS.decode()}}, other)
    assert [one.place for one in found(layout.to_tar(tmp_path / "i"))] == ["annotation", "attestation"]


# ---- names, attributes, what lies behind


def test_a_secret_in_a_file_name_is_found_and_not_shown(tmp_path: Path) -> None:
    [one] = found(image(tmp_path / "i", {"cache/" + HF.decode() + "/x": b"1"}))
    assert (one.place, one.path) == ("file name", "cache/hf_a1.../x")


def test_a_secret_in_the_target_of_a_link(tmp_path: Path) -> None:
    [one] = found(image(tmp_path / "i", layer({}, links={"l": "/x/" + HF.decode()})))
    assert (one.place, one.path) == ("file name", "l")


def test_a_secret_in_an_attribute(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"SCHILY.xattr.user.token": HF.decode()}
        tar.addfile(info)
    [one] = found(image(tmp_path / "i", out.getvalue()))
    assert (one.place, one.path) == ("attributes of a file", "a")


def test_a_secret_behind_the_end_of_a_tar(tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", layer({"a": b"1"}) + HF)) == ["(behind the end of the tar)"]


# ---- archives in layers


def compressed(name: str) -> Callable[[bytes], bytes]:
    return {"gzip": gzip.compress, "zstd": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress}[name]


@pytest.mark.parametrize("packed", ["gzip", "zstd", "bz2", "xz"])
def test_a_compressed_file_is_opened(packed: str, tmp_path: Path) -> None:
    pack = compressed(packed)
    assert paths(image(tmp_path / "i", {"a.x": pack(b"some text " + HF)})) == ["a.x!"]
    assert paths(image(tmp_path / "j", {"a.tar.x": pack(layer({"in/b": b"text", "in/c": HF}))})) == ["a.tar.x!in/c"]


def test_a_tar_is_opened_and_what_it_holds_is_told_once(tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", {"a.tar": layer({"in/c": HF})})) == ["a.tar!in/c"]


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_opened(packed: int, tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", {"a.whl": zipped({"in/c": b"x " + HF}, packed=packed)})) == ["a.whl!in/c"]


def test_an_archive_in_an_archive_is_not_opened(tmp_path: Path) -> None:
    """One level deep, and no deeper: the limit is told in the documentation."""
    assert paths(image(tmp_path / "i", {"a.zip": zipped({"b.gz": gzip.compress(HF)})})) == []


def test_weights_and_credentials_in_an_archive(tmp_path: Path) -> None:
    files = {"m/model.safetensors": b"x", "root/.netrc": b"y"}
    assert paths(image(tmp_path / "i", {"a.tgz": gzip.compress(layer(files)), "b.zip": zipped(files)})) == [
        "a.tgz!m/model.safetensors", "a.tgz!root/.netrc", "b.zip!m/model.safetensors", "b.zip!root/.netrc",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\x8b\x08\x00" + HF + b"\n" * 50,  # what begins like gzip and is none
        b"BZh " + HF,
        gzip.compress(b"x" * 90000)[:-30] + HF,
        b"PK\x03\x04" + HF,
        layer({"a": b"1"})[:1000] + b"\n" + HF,
        gzip.compress(b"fine") + b"\n" + HF,
    ],
    ids=range(6),
)
def test_what_cannot_be_opened_is_searched_as_it_lies_and_said(data: bytes, tmp_path: Path) -> None:
    report = scan_image(image(tmp_path / "i", {"odd": data}), "r/m:1")
    assert [one.path for one in report.findings] == ["odd"]
    assert [line.startswith("/odd: ") for line in report.unread] == [True]


def test_an_encrypted_member_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"locked", "b": HF}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    report = scan_image(image(tmp_path / "i", {"x.zip": bytes(data)}), "r/m:1")
    assert [one.path for one in report.findings] == ["x.zip!b"]
    assert "x.zip!a" in report.unread[0]


@pytest.mark.parametrize(
    "pack", [gzip.compress, lambda data: zipped({"a": data}), lambda data: gzip.compress(layer({"a": data}))]
)
def test_a_bomb_is_left_and_said(pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "INNER_BYTES", 1 << 20)
    report = scan_image(image(tmp_path / "i", {"bomb": pack(bytes(3 << 20))}), "r/m:1")
    assert report.findings == ()
    assert "holds more than is looked through" in report.unread[0]


# ---- weights


def safetensors(size: int) -> bytes:
    head = json.dumps({"w": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(size)


@pytest.mark.parametrize("name", ["m/model.safetensors", "m/a.gguf", "M/A.GGUF"])
def test_weights_are_found_by_name_whatever_their_size(name: str, tmp_path: Path) -> None:
    assert [one.kind for one in found(image(tmp_path / "i", {name: b"x"}))] == ["model weights"]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("safetensors", safetensors(magic.WEIGHTS_BYTES)),
        ("gguf", b"GGUF" + struct.pack("<I", 3) + bytes(magic.WEIGHTS_BYTES)),
        ("ggml", b"lmgg" + bytes(magic.WEIGHTS_BYTES)),
        (
            "torch zip",
            zipped({"archive/data.pkl": b"x", "archive/data/0": bytes(magic.WEIGHTS_BYTES)}, packed=zipfile.ZIP_STORED),
        ),
        ("torch pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(magic.WEIGHTS_BYTES)),
        ("onnx", b"\x08\x08\x12\x07pytorch" + bytes(magic.WEIGHTS_BYTES)),
    ],
)
def test_weights_are_found_by_what_they_hold_whatever_their_name(kind: str, data: bytes, tmp_path: Path) -> None:
    [one] = [one for one in found(image(tmp_path / "i", {"var/cache/0f3a": data})) if "!" not in one.path]
    assert (one.kind, one.detail.split(",")[0]) == ("model weights", kind)
    assert magic.weights("var/cache/0f3a", data[: magic.WEIGHTS_BYTES - 1], magic.WEIGHTS_BYTES - 1) == ""


@pytest.mark.parametrize("head", [b"\x93NUMPY\x01", b"\x89HDF\r\n\x1a\n", b"ftrt", b"xxxxTFL3"])
def test_formats_that_other_data_share_count_from_50_mb(head: bytes) -> None:
    assert magic.weights("a", head, magic.MAYBE_BYTES)
    assert not magic.weights("a", head, magic.MAYBE_BYTES - 1)


def test_a_bin_file_counts_as_weights_from_50_mb(tmp_path: Path) -> None:
    large = bytes(magic.MAYBE_BYTES)
    assert paths(image(tmp_path / "i", {"large.bin": large, "small.bin": large[:-1]})) == ["large.bin"]


@pytest.mark.parametrize(
    "data", [b"\x10\0\0\0\0\0\0\0{\"a\": 1}", b"GGUF" + b"\xff" * 8, b"\0" * 8 + b'{"dtype"', b"\x7fELF", b'{"dtype": 1}' * 9]
)  # fmt: skip
def test_what_only_begins_like_weights_is_none(data: bytes) -> None:
    assert magic.weights("lib/x", data + bytes(2_000_000), len(data) + 2_000_000) == ""


# ---- files by their names, and settings


@pytest.mark.parametrize(
    "name",
    ["root/.netrc", "home/app/.aws/credentials", "root/.docker/config.json", "run/secrets/ca", "root/.kube/config",
     "root/.ssh/id_ed25519", "root/.cache/huggingface/token", "root/.config/gcloud/application_default_credentials.json",
     "root/.config/gh/hosts.yml", "root/.pypirc", "root/.git-credentials", "root/.pgpass"],
)  # fmt: skip
def test_files_that_hold_credentials_are_found_by_name(name: str, tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", {name: b"x"})) == [name]
    assert paths(image(tmp_path / "j", {name: b""})) == []  # an empty mount point


@pytest.mark.parametrize(
    "name", ["etc/pip.conf", "root/.npmrc", "etc/apt/sources.list", "app/.env", "app/.git/config", "app/requirements.txt"]
)
def test_a_password_in_an_address_is_found_where_it_is_a_setting(name: str, tmp_path: Path) -> None:
    line = b"index-url = " + URL + b"\n"
    assert paths(image(tmp_path / "i", {name: line, "usr/share/doc/readme": line})) == [name]


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("etc/docker.json", b'{"auths": {"r.example.com": {"auth": "bWU6cGFzcw=="}}}', "registry login"),
        ("srv/config.json", b'{"auth": "bWU6cGFzc3dvcmQ="}', "registry login"),
        ("etc/npmrc", b"//r.example.com/:_authToken=a1b2c3d4e5\n", "npm login"),
        ("etc/apt/auth.conf.d/x.conf", b"machine r.example.com login me password opensesame\n", "login of a machine"),
        ("srv/c.yaml", b"current-context: a\nclusters: []\nuser: {token: a1b2c3d4e5f6a7b8}\n", "token of a Kubernetes user"),
    ],
)  # fmt: skip
def test_logins_in_settings(name: str, text: bytes, kind: str, tmp_path: Path) -> None:
    findings = found(image(tmp_path / "i", {name: text}))
    assert [(one.kind, one.path, one.fingerprint) for one in findings] == [(kind, name, "")]
    assert found(image(tmp_path / "j", {"lib/settings.py": text})) == []  # code that deals with such settings


# ---- what is given, what is allowed, what is innocent


def test_given_values_are_searched_too(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": b"..CANARY-1..", "b": base64.b64encode(b"user:CANARY-1-and-more")})
    assert paths(path) == []
    findings = found(path, also=[b"CANARY-1", b""])
    assert [one.path for one in findings] == ["a", "b"]
    assert "CANARY" not in str(findings)


def test_a_public_token_is_allowed_by_its_fingerprint(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": HF, "b": SECRETS["npm token"][0]})
    first, second = found(path)
    assert found(path, allow=[first.fingerprint]) == [second]
    done = CliRunner().invoke(command, ["scan", str(path), "-q", "--allow", first.fingerprint, "--allow", second.fingerprint])
    assert done.exit_code == 0, done.output


def test_an_innocent_image_is_clean(tmp_path: Path) -> None:
    innocent = {
        "lib/tls.so": b"\x7fELF" + KEY,  # the key of a library's own self-test
        "opt/venv/lib/python3.11/site-packages/tornado/test/test.key": KEY,
        "lib/tls.py": b"'-----BEGIN PRIVATE KEY-----'",
        "lib/hub.py": b"from hf_hub import hf_hub_download, hf_raise_for_status",
        "doc/s3.txt": b"AKIA" + b"IOSFODNN7EXAMPLE",
        "usr/lib/python3.11/netrc.py": b'password = "x"\npassword x',
    }
    report = scan_image(image(tmp_path / "i", innocent), "r/m:1")
    assert report.findings == ()
    require_clean(report.findings, "r/m:1")
    assert (report.files, report.size, report.layers) == (6, sum(map(len, innocent.values())), 1)


def test_a_key_outside_of_tests_is_found(tmp_path: Path) -> None:
    assert paths(image(tmp_path / "i", {"srv/test/server.key": KEY, "opt/venv/lib/site-packages/a/tests.key": KEY})) == [
        "srv/test/server.key", "opt/venv/lib/site-packages/a/tests.key",
    ]  # fmt: skip


def test_a_layer_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    layout = Layout()
    layout.index(layout.image([gzip.compress(b"x")[:-4]], packed=""))
    with pytest.raises(IntegrityError, match="cannot be read"):
        found(layout.to_tar(tmp_path / "i"))


def test_other_platforms_are_named_as_not_read(tmp_path: Path) -> None:
    layout = Layout()
    names = ("linux/amd64", "linux/arm64")
    layout.index(*(layout.image([layer({"a": name.encode() + b" " + HF})], platform=name) for name in names))
    path = layout.to_tar(tmp_path / "i")
    report = scan_image(path, "r/m:1", platform="linux/arm64")
    assert (report.platform, report.others, len(report.findings)) == ("linux/arm64", ("linux/amd64",), 1)


def test_a_clean_image_says_what_was_looked_at(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": b"1", "odd.gz": b"\x1f\x8b\x08broken"})
    done = CliRunner().invoke(command, ["scan", str(path), "-q"])
    assert done.exit_code == 0
    assert "no secrets and no weights found\n2 files in 1 layer, 10 B unpacked" in done.stdout
    assert "not opened, searched as it lies: /odd.gz" in done.stdout


@pytest.mark.parametrize(("size", "weights"), [(15_999_999, False), (16_000_000, True)])
def test_small_data_of_a_python_package_is_no_model(size: int, weights: bool) -> None:
    inside = "opt/venv/lib/python3.11/site-packages/compressed_tensors/hadamards.safetensors"
    assert bool(magic.weights(inside, b"", size)) is weights
    assert magic.weights("opt/models/hadamards.safetensors", b"", size)  # anywhere else it is one, whatever its size


def test_a_digest_in_a_record_is_no_key_and_the_same_text_elsewhere_is(tmp_path: Path) -> None:
    """Seen in flashinfer's RECORD: the base64 of a sha256 that begins with sk-."""
    digest = b"flashinfer/x.py,sha256=sk-e5Aq0Zk2mT7cYw9LrXbV4nJdUhG1fPsOiE3tRvNyWx0,77\n"
    site = "opt/venv/lib/python3.11/site-packages/flashinfer_python-0.7.0.dist-info"
    path = image(tmp_path / "i.tar", layer({f"{site}/RECORD": digest, f"{site}/METADATA": digest}))
    assert paths(path) == [f"{site}/METADATA"]
