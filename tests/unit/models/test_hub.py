"""The hub's own client against a server that speaks the hub's protocol: what a model is, and who may read it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

from builder.engines.local import LocalEngine
from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.models import hub, inspect
from builder.models.hub_file import HubFile
from builder.models.source import LocalFile, ModelRef, ModelSnapshot
from builder.stores.directory import DirectoryStore
from builder.weights import push, split
from tests.models import gguf_model, safetensors_model
from tests.servers.hub import REPO, Access, Entry, HubServer
from tests.servers.objects import first_times

REF = ModelRef(f"hf://{REPO}")


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither proxies nor the login and the cache of who runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "hf_token", "hugging_face_hub_token"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = safetensors_model(tmp_path / "model", hidden=32, vocab=64)
    (folder / "notes").mkdir()
    (folder / "notes" / "read me.md").write_text("# hi")
    return folder


@pytest.fixture
def server(model: Path) -> Iterator[HubServer]:
    with HubServer(model) as server:
        yield server
        assert server.strange == []


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(snapshot: ModelSnapshot) -> dict[str, bytes]:
    found = {}
    for file in snapshot.files:
        with file.open() as reading:
            found[file.path] = reading.read_at(0, file.size)
    return found


def test_a_branch_is_pinned_to_its_commit(server: HubServer, model: Path, tmp_path: Path) -> None:
    snapshot = hub.snapshot(REF, endpoint=server.endpoint)
    before = content(model)
    assert (snapshot.source, snapshot.revision) == (f"hf://{REPO}", server.commit)
    assert [f.path for f in snapshot.files if f.sha256] == ["model.safetensors"]
    assert server.count("hub") == server.count("cdn") == 0

    moved = safetensors_model(tmp_path / "moved", hidden=32, vocab=64, seed=1)
    assert server.publish(moved) != server.commit
    assert read(snapshot) == before
    assert hub.snapshot(REF, endpoint=server.endpoint).revision == server.branches["main"]


def test_nothing_is_kept_on_this_machine(server: HubServer, model: Path, tmp_path: Path) -> None:
    assert read(hub.snapshot(REF, endpoint=server.endpoint)) == content(model)
    assert not (tmp_path / "cache").exists()


def test_only_the_chosen_files_are_asked_for(server: HubServer) -> None:
    server.branches["v1"] = server.commit
    ref = ModelRef(f"hf://{REPO}@v1", include=("*.json", "*.md"), exclude=("notes/",))
    assert list(read(hub.snapshot(ref, endpoint=server.endpoint))) == ["config.json", "tokenizer.json"]
    assert not any("model.safetensors" in r.path for r in server.requests)
    with pytest.raises(ConfigError, match="no file to take"):
        hub.snapshot(ModelRef(f"hf://{REPO}", include=("*.gguf",)), endpoint=server.endpoint)


def test_the_token_goes_to_the_hub_and_nowhere_else(server: HubServer, model: Path) -> None:
    server.access = Access("private", "hf_secret")
    snapshot = hub.snapshot(REF, token="hf_secret", endpoint=server.endpoint)
    assert read(snapshot) == content(model)
    assert {r.token for r in server.requests if r.where != "cdn"} == {"Bearer hf_secret"}
    assert {r.token for r in server.requests if r.where == "cdn"} == {""}


def test_a_file_travels_without_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.access = Access("private", "hf_secret")
    snapshot = hub.snapshot(REF, token="hf_secret", endpoint=server.endpoint)
    sent = pickle.dumps(snapshot)
    assert b"hf_secret" not in sent
    assert "hf_secret" not in repr(snapshot) + str(snapshot.to_json())
    arrived: ModelSnapshot = pickle.loads(sent)
    assert arrived == snapshot
    assert [f.identity for f in arrived.files] == [f.identity for f in snapshot.files]
    with pytest.raises(RemoteError, match="not found, or private"):
        read(arrived)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")  # the other machine's own
    assert len(read(arrived)) == len(snapshot.files)


def test_the_token_stays_when_the_hub_redirects_to_itself_only(server: HubServer, model: Path) -> None:
    """A renamed repository is redirected within the hub; a mirror has no CDN."""
    server.cdn = False
    server.access = Access("private", "hf_secret")
    assert read(hub.snapshot(REF, token="hf_secret", endpoint=server.endpoint)) == content(model)


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        (ModelRef("hf://org/nothing"), "not found, or private"),
        (ModelRef(f"hf://{REPO}", revision="v9"), "no revision 'v9'"),
        (ModelRef(f"hf://{REPO}@v8"), "no revision 'v8'"),
    ],
)
def test_what_the_hub_does_not_have(server: HubServer, ref: ModelRef, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        hub.snapshot(ref, endpoint=server.endpoint)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("kind", "token"), [("private", ""), ("private", "hf_wrong"), ("gated", "hf_wrong")])
def test_a_wrong_token(server: HubServer, kind: str, token: str) -> None:
    server.access = Access(kind, "hf_secret")
    with pytest.raises(RemoteError, match="not found, or private") as caught:
        hub.snapshot(REF, token=token, endpoint=server.endpoint)
    assert "hf_wrong" not in str(caught.value.to_json())


@pytest.mark.parametrize("token", ["", "hf_of_someone_else"])
def test_a_gated_model_names_its_files_but_gives_none(server: HubServer, token: str) -> None:
    server.access = Access("gated")
    snapshot = hub.snapshot(REF, token=token, endpoint=server.endpoint)
    with pytest.raises(RemoteError, match="access is gated") as caught:
        read(snapshot)
    assert "accept its terms" in caught.value.hint
    assert server.count("hub") == 1


def test_an_unreachable_hub() -> None:
    with pytest.raises(RemoteError, match="cannot be reached"):
        hub.snapshot(REF, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("error", RemoteError, "answered 500"),
        ("portal", RemoteError, "describes no model"),
        ("moved", IntegrityError, "asked for commit"),
    ],
)
def test_an_answer_that_is_none(server: HubServer, fault: str, error: type[Exception], words: str) -> None:
    server.plan = first_times(fault, times=99, only="api/")
    with pytest.raises(error, match=words):
        hub.snapshot(ModelRef(f"hf://{REPO}@{server.commit}"), endpoint=server.endpoint)


def test_the_first_request_is_tried_again(server: HubServer) -> None:
    server.plan = first_times("busy", only="api/")
    assert hub.snapshot(REF, endpoint=server.endpoint).revision == server.commit


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b"])
def test_a_hub_cannot_name_a_file_outside_the_model(server: HubServer, model: Path, name: str) -> None:
    server.commits[server.commit][name] = Entry(name, model / "config.json")
    with pytest.raises(ConfigError, match="cannot be part of a model"):
        hub.snapshot(REF, endpoint=server.endpoint)


@pytest.mark.parametrize("source", ["hf://model", "hf://a/b/c", "hf:///x", "hf://a/"])
def test_names_that_are_none(source: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://organisation/model"):
        hub.parse(source)


def test_a_file_that_is_not_what_the_hub_recorded_is_refused(server: HubServer, tmp_path: Path) -> None:
    server.plan = lambda key, asked: "swap" if key.startswith("cdn/") and asked >= 3 else ""  # after its header was read
    snapshot = hub.snapshot(REF, endpoint=server.endpoint)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256 .*, but its origin says"):
        push.push(split.plan(snapshot, chunk_bytes=4096), DirectoryStore(tmp_path / "store"), LocalEngine(2), name="m")
    assert not list((tmp_path / "store").glob("manifests/**/*"))


class TestCache:
    """Files that the hub's client has already are read from there."""

    @pytest.fixture
    def cached(self, server: HubServer) -> Path:
        found = Path(snapshot_download(REPO, endpoint=server.endpoint, revision=server.commit))
        server.requests.clear()
        return found

    def test_they_are_not_asked_for_again(self, server: HubServer, cached: Path, model: Path) -> None:
        snapshot = hub.snapshot(REF, endpoint=server.endpoint)
        assert all(isinstance(f, LocalFile) for f in snapshot.files)
        assert [f.path for f in snapshot.files if f.sha256] == ["model.safetensors"]
        assert read(snapshot) == content(model)
        assert {r.where for r in server.requests} == {"api"}

    def test_another_commit_is_not_taken_from_there(self, server: HubServer, cached: Path, tmp_path: Path) -> None:
        server.publish(safetensors_model(tmp_path / "moved", hidden=32, vocab=64, seed=1))
        assert all(isinstance(f, HubFile) for f in hub.snapshot(REF, endpoint=server.endpoint).files)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_half_a_file_is_none(self, server: HubServer, cached: Path, model: Path, name: str) -> None:
        (cached / name).resolve().write_bytes((cached / name).read_bytes()[:-1])
        snapshot = hub.snapshot(REF, endpoint=server.endpoint)
        assert [f.path for f in snapshot.files if isinstance(f, HubFile)] == [name]
        assert read(snapshot) == content(model)

    def test_a_small_file_that_was_altered_is_none(self, server: HubServer, cached: Path, model: Path) -> None:
        blob = (cached / "config.json").resolve()
        blob.write_bytes(blob.read_bytes().swapcase())
        assert read(hub.snapshot(REF, endpoint=server.endpoint)) == content(model)

    def test_a_large_file_that_was_altered_is_refused_by_its_sha256(
        self, server: HubServer, cached: Path, tmp_path: Path
    ) -> None:
        blob = (cached / "model.safetensors").resolve()
        body = bytearray(blob.read_bytes())
        body[-1] ^= 1
        blob.write_bytes(body)
        snapshot = hub.snapshot(REF, endpoint=server.endpoint)
        with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256"):
            push.push(split.plan(snapshot), DirectoryStore(tmp_path / "store"), LocalEngine(2), name="m")


class TestInspect:
    """`builder init hf://...` reads headers, not weights."""

    @pytest.fixture(autouse=True)
    def _endpoint(self, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve: Any = hub.snapshot
        monkeypatch.setattr(hub, "snapshot", lambda ref, token: resolve(ref, token=token, endpoint=server.endpoint))

    def test_safetensors(self, server: HubServer, model: Path) -> None:
        here, there = inspect.inspect(ModelRef(str(model))), inspect.inspect(REF)
        assert (there.parameters, there.dtypes, there.kind) == (here.parameters, ("BF16",), "safetensors")
        assert (there.architecture, there.size, there.files) == ("llama", here.size, 4)
        read = [r.range for r in server.requests if r.where == "cdn"]
        assert sum(int(b) - int(a) + 1 for a, b in (r.removeprefix("bytes=").split("-") for r in read)) < 10_000

    def test_gguf(self, server: HubServer, tmp_path: Path) -> None:
        server.publish(gguf_model(tmp_path / "g" / "model.gguf").parent)
        found = inspect.inspect(REF)
        assert (found.kind, found.architecture) == ("gguf", "llama")
        assert found.parameters > 0

    def test_no_hub_is_a_note(self, server: HubServer) -> None:
        server.access = Access("gated")
        assert "gated" in inspect.inspect(REF).note
