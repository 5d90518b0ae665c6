"""What the command line and builder.yaml name for a bake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from builder.cli.bake import disk as command
from builder.cli.bake import inputs
from builder.cli.bake.inputs import Asked
from builder.config.load import Loaded, load
from builder.config.spec import Bake
from builder.errors import BuilderError, ConfigError, IntegrityError, RemoteError
from builder.node import plan, registry
from builder.node.images import Opened
from builder.node.inputs import CompiledInput, ImageInput, WeightsInput
from builder.node.layout import Descriptor, OciImage
from builder.node.plan import BakePlan
from builder.node.targets import TARGETS
from builder.progress import NoProgress

YAML = """\
version: 1
name: tiny
model: {source: model}
weights: {store: 's3://b/tiny', endpoint_url: 'https://s3.example.com', region: eu-1}
image: {repository: r.example.com/tiny, engine: {name: transformers, version: '5.23.0'}, ca_bundle: ca.pem}
bake: {contents: [weights, compile-cache], target: raw, platform: linux/arm64, containerd: bin}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "builder.yaml").write_text(YAML)
    return load(tmp_path / "builder.yaml")


def test_the_command_line_is_taken_before_the_description(loaded: Loaded, tmp_path: Path) -> None:
    asked = Asked(weights=(tmp_path,))
    assert inputs.weights(asked, loaded) == (WeightsInput(tmp_path),)
    assert inputs.compiled(asked, loaded) == ()
    assert inputs.images(asked, loaded, tmp_path, NoProgress()) == ()


def test_the_description_names_stores(loaded: Loaded, tmp_path: Path) -> None:
    assert inputs.weights(Asked(), loaded) == (WeightsInput(None, "s3://b/tiny", "tiny", "https://s3.example.com", "eu-1"),)
    assert inputs.compiled(Asked(), loaded) == (
        CompiledInput(None, "s3://b/tiny/compile-cache", "tiny", "https://s3.example.com", "eu-1"),
    )
    assert (loaded.spec.bake.target, loaded.spec.bake.platform, loaded.spec.bake.containerd) == ("raw", "linux/arm64", "bin")


def test_a_cache_of_the_image_comes_before_the_store(tmp_path: Path) -> None:
    (tmp_path / "builder.yaml").write_text(YAML.replace("ca_bundle: ca.pem", "compile_cache: caches/h100"))
    assert inputs.compiled(Asked(), load(tmp_path / "builder.yaml")) == (CompiledInput(tmp_path / "caches/h100"),)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("layout", ("", "layout")),
        ("acme/llm:v7=layout", ("acme/llm:v7", "layout")),
        ("tiny@ab12=s3://b/p?x=1", ("tiny@ab12", "s3://b/p?x=1")),
        ("s3://b/p?x=1", ("", "s3://b/p?x=1")),
    ],
)
def test_a_name_before_a_place(text: str, pair: tuple[str, str]) -> None:
    assert inputs._split(text) == pair


def test_a_path_that_is_there_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert inputs._split(str(tmp_path / "a=b")) == ("", str(tmp_path / "a=b"))


def test_logins_are_where_docker_keeps_them(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert inputs._access(Asked(), None).authfile is None
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text("{}")
    assert inputs._access(Asked(), None).authfile == tmp_path / ".docker/config.json"
    assert inputs._access(Asked(), loaded).ca == tmp_path / "ca.pem"
    assert inputs._access(Asked(ca=Path("other.pem")), loaded).ca == Path("other.pem")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "elsewhere"))
    assert inputs._access(Asked(), None).authfile is None
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "x")  # skopeo reads it by itself
    assert inputs._access(Asked(), None).authfile is None


def test_the_command_and_the_description_know_the_same_targets() -> None:
    assert tuple(TARGETS) == command.TARGETS
    assert tuple(Bake.model_json_schema()["properties"]["target"]["enum"]) == command.TARGETS


@pytest.mark.parametrize(
    ("target", "more", "taken", "says"),
    [
        ("raw", {"archive": True}, "", "target raw has no archive form"),
        ("gke-secondary", {"weights": (WeightsInput(store="s"),)}, "", "holds unpacked images and nothing else"),
        ("gke-secondary", {"keep_blobs": True}, "", "holds unpacked images and nothing else"),
        ("azure-data", {}, "d.img.vhd", r"d\.img\.vhd: already there"),
        ("gke-secondary", {"archive": True}, "d.img.tar.gz", r"d\.img\.tar\.gz: already there"),
    ],
)
def test_a_plan_that_its_target_cannot_hold_is_refused(
    tmp_path: Path, target: str, more: dict[str, object], taken: str, says: str
) -> None:
    if taken:
        (tmp_path / taken).touch()
    order = BakePlan(tmp_path / "d.img", (ImageInput(tmp_path),), size=1 << 30, target=TARGETS[target], **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says):
        plan.check(order)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("FATA unauthorized: authentication required", RemoteError, "r.example.com refuses the login"),
        ("manifest unknown: manifest unknown", RemoteError, "r.example.com has no such image"),
        ("dial tcp: lookup r.example.com: no such host", RemoteError, "r.example.com does not answer"),
        ("x509: certificate signed by unknown authority", RemoteError, "a certificate that is not trusted"),
        ("toomanyrequests: rate limit", RemoteError, "asks to come back later"),
        ("Digest did not match, expected sha256:0", IntegrityError, "sent other bytes than a digest names"),
        ("something else", RemoteError, "something else"),
    ],
)
def test_a_registrys_words_become_one_line(said: str, kind: type[BuilderError], message: str) -> None:
    stamped = f'exit status 1 from: skopeo\n  time="2026-01-01T00:00:00Z" level=fatal msg="{said}"'
    error = registry.refusal("r.example.com/a:1", stamped)
    assert type(error) is kind
    assert message in error.message
    assert "time=" not in error.message


def test_the_file_of_logins_is_named_where_it_knows_the_registry(tmp_path: Path) -> None:
    """Else skopeo would ask it alone, and not where `skopeo login` keeps its own."""
    config = tmp_path / "config.json"
    remote = registry._Remote("r.example.com/a:1", registry.Access(config), tmp_path / "0.ca")
    for text, named in (
        ('{"auths": {"r.example.com": {"auth": "x"}}}', config),
        ('{"auths": {"https://r.example.com/v1/": {"auth": "x"}}}', config),
        ('{"credHelpers": {"r.example.com": "ours"}, "credsStore": "other"}', config),
        ('{"auths": {"other.example.com": {"auth": "x"}}}', None),
        ("{}", None),
        ("not JSON", config),
    ):
        config.write_text(text)
        assert remote._logins(config) == named, text
    config.write_text('{"credsStore": "ecr-login", "auths": {"r.example.com": {"auth": "c2VjcmV0"}}}')
    own = remote._logins(config)
    assert own is not None
    assert own.read_text() == '{"credHelpers": {"r.example.com": "ecr-login"}}'


class Archive:
    """A layout whose blobs are no files of their own."""

    path = Path("image.tar")

    def size(self, name: str) -> int | None:
        return None

    def open(self, name: str) -> IO[bytes]:
        raise AssertionError(name)

    def file(self, name: str) -> Path | None:
        return None


class Folder(Archive):
    def file(self, name: str) -> Path | None:
        return Path("layout") / name


def test_layers_that_images_share_are_counted_once(tmp_path: Path) -> None:
    """Two images of one base of 600 MiB fit on a disk of 2 GiB; as two of 600 MiB each they would not."""
    layer = Descriptor("", "sha256:" + "a" * 64, 600 << 20)
    image = OciImage("r.example.com/a:1", layer, layer, layer, (layer,), ("sha256:x",), "", (), "linux/amd64")
    one, order = Opened(Archive(), image), BakePlan(tmp_path / "d.img", (ImageInput(tmp_path),), size=2 << 30)
    again = Opened(Archive(), replace(image, reference="r.example.com/b:1"))
    assert plan.estimate(order, [one, again]) == plan.estimate(order, [one])
    other = Opened(Archive(), replace(image, layers=(replace(layer, digest="sha256:" + "b" * 64),)))
    with pytest.raises(ConfigError, match="a disk of"):
        plan.estimate(order, [one, other])


def test_layers_that_are_read_where_they_lie_need_no_room_on_the_disk(tmp_path: Path) -> None:
    layer = Descriptor("", "sha256:" + "a" * 64, 1200 << 20)
    image = OciImage("r.example.com/a:1", layer, layer, layer, (layer,), ("sha256:x",), "", (), "linux/amd64")
    order = BakePlan(tmp_path / "d.img", (ImageInput(tmp_path),), size=2 << 30)
    plan.estimate(order, [Opened(Folder(), image)])
    for refused in ([Opened(Archive(), image)], order), ([Opened(Folder(), image)], replace(order, keep_blobs=True)):
        with pytest.raises(ConfigError, match=r"a disk of 2\.00 GiB for at least 2\.59 GiB"):
            plan.estimate(refused[1], refused[0])


def test_what_cannot_work_is_told_before_images_are_fetched(tmp_path: Path) -> None:
    for change, says in (
        ({"size": (1 << 30) + 512}, "expected whole GiB"),
        ({"archive": True}, "has no archive form"),
        ({"target": TARGETS["gke-secondary"], "keep_blobs": True}, "holds unpacked images and nothing else"),
        ({"weights": (WeightsInput(folder=tmp_path),)}, "not a restored model"),
        ({"out": tmp_path / "a:b.img", "loop": False}, "overlayfs takes no path with a colon"),
    ):
        with pytest.raises(ConfigError, match=says):
            plan.check_early(replace(BakePlan(tmp_path / "d.img", size=1 << 30), **change))  # type: ignore[arg-type]


def test_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    """/dev/sdb with --force would be a file of that name in memory, and the device as it was."""
    device = tmp_path / "sdb"
    device.symlink_to("/dev/null")
    for force in (False, True):
        with pytest.raises(ConfigError, match="sdb: not a file") as caught:
            plan.check_early(BakePlan(device, size=1 << 30, force=force))
        assert "--force" not in caught.value.hint
    azure = BakePlan(tmp_path / "d.img", size=1 << 30, target=TARGETS["azure-data"], force=True)
    (tmp_path / "d.img.vhd").mkdir()
    with pytest.raises(ConfigError, match=r"d\.img\.vhd: not a file"):
        plan.check_early(azure)


def test_a_place_without_a_compile_cache_is_told_before_any_work(tmp_path: Path) -> None:
    for text, says in (
        (str(tmp_path), "neither a captured compile cache .no fingerprint.json in it. nor a store"),
        (f"tiny@ab12={tmp_path}", "neither a captured compile cache"),
        (str(tmp_path / "no"), "no: no such folder"),
    ):
        with pytest.raises(ConfigError, match=says):
            inputs.compiled(Asked(compiled=(text,)), None)
    (tmp_path / "refs").mkdir()
    assert inputs.compiled(Asked(compiled=(f"tiny@ab12={tmp_path}",)), None) == (
        CompiledInput(None, str(tmp_path), "tiny@ab12"),
    )
    assert inputs.compiled(Asked(compiled=("s3://b/p",)), None) == (CompiledInput(None, "s3://b/p", ""),)
    (tmp_path / "fingerprint.json").touch()
    assert inputs.compiled(Asked(compiled=(str(tmp_path),)), None) == (CompiledInput(tmp_path),)


def test_a_name_without_tag_is_told_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'debian' is not an image reference"):
        inputs.images(Asked(images=("debian",)), None, tmp_path, NoProgress())
    assert list(tmp_path.iterdir()) == []
