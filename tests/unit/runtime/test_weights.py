from __future__ import annotations

import os
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.volume import model_dir
from builder.runtime import weights
from builder.runtime.settings import Settings, read
from builder.runtime.weights import find
from builder.transfer.cache import prune
from builder.transfer.lease import Lease, hold
from tests.unit.transfer import build


def settings(tmp_path: Path, **values: str) -> Settings:
    env = {"BUILDER_MODELS_ROOT": str(tmp_path / "models"), "BUILDER_STORE": str(tmp_path / "store"), "BUILDER_MODEL": "m"}
    return read(env | {f"BUILDER_{name.upper()}": value for name, value in values.items()})


@pytest.fixture
def model(tmp_path: Path) -> build.Model:
    model = build.model({"model.safetensors": os.urandom(4000), "config.json": b"{}"})
    model.store(tmp_path / "store")
    return model


def test_it_is_fetched_once_and_found_after(tmp_path: Path, model: build.Model) -> None:
    first, second = find(settings(tmp_path)), find(settings(tmp_path))
    assert model.same(first.folder)
    assert first.folder == second.folder == model_dir(tmp_path / "models", model.manifest.digest)
    assert (first.fetched_bytes, second.fetched_bytes) == (4002, 0)
    assert first.first_layers_s is not None
    assert 0 <= first.first_layers_s <= first.seconds
    assert first.to_json()["origin"] == f"store {tmp_path / 'store'}"


@pytest.mark.parametrize("ref", ["m", "", "digest"])
def test_no_store_is_needed_when_it_is_here(tmp_path: Path, model: build.Model, ref: str) -> None:
    folder = find(settings(tmp_path)).folder
    ref = model.manifest.digest if ref == "digest" else ref
    assert find(settings(tmp_path, store="", model=ref)).folder == folder


def test_a_root_may_be_the_model_itself(tmp_path: Path, model: build.Model) -> None:
    folder = find(settings(tmp_path)).folder
    assert find(settings(tmp_path, store="", models_root=str(folder))).folder == folder
    assert find(settings(tmp_path, models_root=str(folder))).fetched_bytes == 0


@pytest.mark.parametrize("store", ["http://127.0.0.1:9/", "/nowhere"])
def test_an_unreachable_store_falls_back_to_the_only_version(
    tmp_path: Path, model: build.Model, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    with pytest.raises(RemoteError):
        find(settings(tmp_path, store="/nowhere"))
    folder = find(settings(tmp_path)).folder
    assert find(settings(tmp_path, store=store)).folder == folder
    assert f"using {model.manifest.digest}, the only local version of m" in capsys.readouterr().err
    assert find(settings(tmp_path, model=model.manifest.digest, store=store)).folder == folder


def test_several_versions_of_a_name_are_ambiguous(tmp_path: Path, model: build.Model) -> None:
    find(settings(tmp_path))
    other = build.model({"model.safetensors": os.urandom(4000)})
    other.store(tmp_path / "store")
    find(settings(tmp_path))
    with pytest.raises(ConfigError, match="2 local models answer 'm'") as caught:
        find(settings(tmp_path, store=""))
    assert model.manifest.digest in caught.value.message
    assert find(settings(tmp_path, store="", model=model.manifest.digest)).digest == model.manifest.digest


def test_a_read_only_root_is_searched_and_the_next_one_filled(tmp_path: Path, model: build.Model) -> None:
    seeded = tmp_path / "seeded"
    find(settings(tmp_path, models_root=str(seeded)))
    roots = f"{seeded}:{tmp_path / 'models'}"
    assert find(settings(tmp_path, models_root=roots, store="")).folder.parent == seeded
    other = build.model({"config.json": b"[]"}, name="other")
    other.store(tmp_path / "store")
    roots = f"/proc/nothing:{tmp_path / 'models'}"
    assert find(settings(tmp_path, models_root=roots, model="other")).folder.parent == tmp_path / "models"


def test_no_writable_root_is_a_capability(tmp_path: Path, model: build.Model) -> None:
    with pytest.raises(CapabilityError, match="no models root can be written: /proc/models: ") as caught:
        find(settings(tmp_path, models_root="/proc/models"))
    assert "mount a writable volume" in caught.value.hint


@pytest.mark.parametrize("full", [False, True])
def test_damage_is_repaired_from_the_store(tmp_path: Path, model: build.Model, full: bool) -> None:
    path = find(settings(tmp_path)).folder / "model.safetensors"
    body = bytearray(path.read_bytes())
    if full:
        body[1500] ^= 1
    path.write_bytes(body if full else body[:2500])
    verify = "full" if full else "size"
    with pytest.raises(IntegrityError, match=r"1 faults:\n  .*model\.safetensors"):
        find(settings(tmp_path, store="", verify=verify))
    found = find(settings(tmp_path, verify=verify))
    assert 0 < found.fetched_bytes < found.manifest.size
    assert model.same(found.folder)


def test_a_half_written_folder_is_not_a_model(tmp_path: Path, model: build.Model) -> None:
    folder = find(settings(tmp_path)).folder
    (folder / ".builder" / "complete").unlink()
    with pytest.raises(ConfigError, match="is not in"):
        find(settings(tmp_path, store=""))


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"store": "", "model": ""}, ConfigError, "no model is named"),
        ({"store": ""}, ConfigError, "model m is not in"),
        ({"model": "other"}, IntegrityError, "no model 'other'"),
        ({"model": "sha256:" + "0" * 64}, IntegrityError, "manifest sha256:0{64} is not there"),
    ],
)
def test_what_cannot_be_found_is_named(
    tmp_path: Path, model: build.Model, values: dict[str, str], kind: type[BuilderError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        find(settings(tmp_path, **values))


def test_what_is_found_is_leased_and_makes_room_only_when_released(tmp_path: Path) -> None:
    one, two = (build.model({"w": os.urandom(1 << 20)}, chunk_bytes=1 << 18, name=name) for name in ("one", "two"))
    one.store(tmp_path / "store")
    two.store(tmp_path / "store")
    small = {"cache_size": "3MiB"}
    fetched = find(settings(tmp_path, model="one", **small))
    again = find(settings(tmp_path, model="one", **small))
    fetched.lease.release()
    with pytest.raises(CapabilityError, match="bytes needed in a cache of 3145728"):
        find(settings(tmp_path, model="two", **small))
    assert one.same(again.folder)
    again.lease.release()
    find(settings(tmp_path, model="two", **small)).lease.release()
    assert not fetched.folder.exists()


def test_a_model_that_is_evicted_between_the_look_and_the_lease_is_fetched_again(
    tmp_path: Path, model: build.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(settings(tmp_path)).lease.release()
    evicted = []

    def hold_late(folder: Path) -> Lease:
        if not evicted:
            evicted.extend(prune(tmp_path / "models", 0))
            assert len(evicted) == 1
        return hold(folder)

    monkeypatch.setattr(weights, "hold", hold_late)
    found = find(settings(tmp_path))
    assert found.fetched_bytes == found.manifest.size
    assert model.same(found.folder)
    assert prune(tmp_path / "models", 0) == []


def test_models_that_vanish_while_they_are_listed_are_passed_over(
    tmp_path: Path, model: build.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(settings(tmp_path)).lease.release()
    real = Path.read_bytes

    def late(path: Path) -> bytes:
        if path.name == "manifest.json":
            prune(tmp_path / "models", 0)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert list(weights.models(tmp_path / "models")) == []
    with pytest.raises(ConfigError, match="model m is not in"):
        find(settings(tmp_path, store=""))
