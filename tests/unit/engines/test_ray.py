"""What of the Ray engine needs no cluster."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from builder.cli.weights.inputs import _cluster
from builder.engines import ray as engine
from builder.engines.base import Cluster
from builder.errors import (
    BudgetError,
    BuilderError,
    CapabilityError,
    ClaimError,
    ConfigError,
    IntegrityError,
    RemoteError,
)  # fmt: skip


@pytest.mark.parametrize(
    "kind", [BuilderError, ConfigError, IntegrityError, CapabilityError, RemoteError, BudgetError, ClaimError]
)
def test_an_error_survives_the_way_back(kind: type[BuilderError]) -> None:
    error = kind("what\nhappened", hint="do this", where={"file": "f", "start": 7})
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert found.to_json() == error.to_json()
    assert str(found) == str(error)


def test_an_address_without_a_port() -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        engine._require_open("head:ray")


def test_nobody_listens() -> None:
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        engine._require_open("127.0.0.1:9")


def test_where_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError) as error:
        list(engine.RayEngine().map(str, [1]))
    assert "coldstart-builder[ray]" in error.value.hint


def test_it_shares_no_memory_with_its_tasks() -> None:
    assert isinstance(engine.RayEngine(), Cluster)


def test_another_version_on_the_worker() -> None:
    found = engine._perform(pickle.dumps(bool), pickle.dumps(0), "9.9")
    assert isinstance(found, ConfigError)
    assert "9.9 here" in found.message


def test_a_worker_that_lacks_a_module() -> None:
    found = engine._perform(b"cno_such_module\nf\n.", pickle.dumps(0), engine.__version__)
    assert isinstance(found, ConfigError)
    assert "no_such_module" in found.message


@pytest.mark.parametrize(
    ("value", "address"),
    [("local", ""), ("ray", "auto"), ("ray=10.0.0.1:6379", "10.0.0.1:6379"), ("ray://head:10001", "ray://head:10001")],
)
def test_the_option(value: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nothing: Any = None
    assert _cluster(nothing, nothing, value) == address


@pytest.mark.parametrize("value", ["", "ray=", "raylet", "dask"])
def test_another_word(value: str) -> None:
    import click

    nothing: Any = None
    with pytest.raises(click.BadParameter, match="expected local"):
        _cluster(nothing, nothing, value)
