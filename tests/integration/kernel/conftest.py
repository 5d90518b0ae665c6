"""One small disk for all tests that only read it, or copy it to damage the copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.node.bake import BakePlan, DataVolume, bake
from builder.node.inputs import ImageInput, WeightsInput
from builder.transfer.restore import restore
from builder.transfer.source import FolderSource
from tests import disks, oci
from tests.leftovers import leftovers
from tests.unit.transfer.build import Model, random_model


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model(files=2, size=700_000, chunk_bytes=100_000)


@pytest.fixture(scope="session")
def weights(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restored folder."""
    root = tmp_path_factory.mktemp("weights")
    restore(model.manifest, FolderSource(model.store(root / "store")), root / "model")
    return root / "model"


@pytest.fixture(scope="session")
def baked(loop_root: None, layout: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> DataVolume:
    out = tmp_path_factory.mktemp("disk") / "data.img"
    plan = BakePlan(out, images=(ImageInput(layout),), weights=(WeightsInput(folder=weights),), size=disks.SIZE)
    return bake(plan)


@pytest.fixture
def nothing_stays(loop_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the test no loop device, mount, process or folder of its disks is left."""
    yield
    assert leftovers(tmp_path_factory.getbasetemp()) == []
