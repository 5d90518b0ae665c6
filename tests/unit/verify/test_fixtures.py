"""The pytest plugin: light to import, offered to every suite, honest about what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import RemoteError

HEAVY = ("docker", "testcontainers", "boto3", "obstore", "pydantic", "jinja2", "requests", "awscrt")


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    program = f"import builder.verify.fixtures, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugin_offers_its_fixtures(request: pytest.FixtureRequest) -> None:
    start = request.getfixturevalue("builder_server")
    assert request.getfixturevalue("builder_environ") == {}
    with pytest.raises(RemoteError, match="no such folder"), start("image:tag", store="/nowhere"):
        pass


def test_a_store_without_models_is_refused_before_anything_starts(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from builder.errors import BuilderError

    start = request.getfixturevalue("builder_server")
    with pytest.raises(BuilderError, match="no model"), start(None, store=str(tmp_path)):
        pass
