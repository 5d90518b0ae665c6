"""Pytest fixtures for the test suites of users; installed with the package, so nothing has to be imported.

    def test_it_answers(builder_server):
        with builder_server("registry.example.com/llm/llama3:1.2", store="s3://llm-weights/llama3") as server:
            assert "Paris" in server.ask("What is the capital of France?")
            assert server.seconds["cold_start"] < 30

A fixture `builder_environ` of your own hands the store's credentials over: `return os.environ`. This module imports
pytest and the standard library alone; the rest is imported when the fixture is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from builder.format.phases import Phase
    from builder.verify.server import Server


@dataclass(frozen=True)
class Ready:
    """A server that is ready. base_url: of its OpenAI-compatible API, without /v1.  model: the name it serves.

    seconds: "cold_start", from asked for until ready, and each phase by name.
    """

    base_url: str
    control_url: str
    model: str
    manifest: str
    seconds: Mapping[str, float]
    phases: tuple[Phase, ...]
    server: Server
    protocol: str = "openai"

    def ask(self, prompt: str, *, max_tokens: int = 64) -> str:
        """The whole answer at temperature 0; of a server of tensors, its outputs in JSON. Raises RemoteError without one."""
        from builder.runtime import drive

        return drive.asking(self.protocol)(self.base_url, self.model, prompt, max_tokens=max_tokens).text

    def metrics(self) -> str:
        """The text of /metrics."""
        from builder.verify import server

        return server.metrics(self.server)

    def logs(self, lines: int = 100) -> str:
        """The last lines the server wrote, secrets hidden."""
        return self.server.logs(lines)


class Factory(Protocol):
    """Starts a server; leaving the context stops it."""

    def __call__(self, image: str | None, **options: Any) -> AbstractContextManager[Ready]: ...


@pytest.fixture(scope="session")
def builder_environ() -> Mapping[str, str]:
    """Variables for the store's credentials. Empty; a fixture of the same name in your conftest.py replaces it."""
    return {}


@pytest.fixture(scope="session")
def builder_server(builder_environ: Mapping[str, str]) -> Factory:
    """`builder_server(image, store=..., ...)`: a context manager that yields a `Ready` server.

    image: its reference on this machine's Docker engine; None runs the server in place, with this Python.
    store: folder or URL.  ref: name, name@revision or sha256:...; default the store's only one.
    endpoint_url, region: of the store.  engine, port, control_port: as the image was built.  timeout_s: until ready.
    gpu: "auto", "required" or "none".  env: variables that replace the image's own.  models: a folder of restored models.
    Raises CapabilityError where this machine lacks something, which a suite may turn into a skip.
    """

    def start(image: str | None, **options: Any) -> AbstractContextManager[Ready]:
        return _started(image, builder_environ, **options)

    return start


@contextlib.contextmanager
def _started(
    image: str | None,
    environ: Mapping[str, str],
    *,
    store: str,
    ref: str = "",
    endpoint_url: str | None = None,
    region: str | None = None,
    engine: str = "llama.cpp",
    port: int = 8000,
    control_port: int = 8001,
    timeout_s: float = 600.0,
    gpu: str = "auto",
    env: Mapping[str, str] | None = None,
    models: Path | None = None,
) -> Iterator[Ready]:
    from builder.config.spec import Serve
    from builder.progress import NoProgress
    from builder.runtime.engines import ENGINES
    from builder.transfer.manifests import read_manifest
    from builder.transfer.source import open_source
    from builder.verify import container, in_place, server
    from builder.verify.launch import Launch, credentials

    manifest = read_manifest(open_source(store, endpoint_url=endpoint_url, region=region), ref)
    launch = Launch(
        name=manifest.name, manifest=manifest.digest, store=store, engine=engine, endpoint_url=endpoint_url, region=region,
        serve=Serve(port=port, control_port=control_port), env={} if image else dict(env or {}),
        credentials=credentials(environ), models=str(models) if models else None,
    )  # fmt: skip
    box = container.Options(gpu=gpu, env=dict(env or {}))
    start: Callable[[], AbstractContextManager[Server]] = (
        (lambda: container.start(image, launch, box)) if image else (lambda: in_place.start(launch, environ=environ))
    )
    with start() as running:
        ready = server.wait_ready(running, timeout_s=timeout_s, progress=NoProgress(), title="start")
        phases = tuple(server.phases(running))
        yield Ready(
            base_url=server.base_url(running),
            control_url=f"http://{running.host}:{running.control_port}",
            model=manifest.name,
            manifest=manifest.digest,
            seconds={"cold_start": ready.at - running.asked} | {p.phase: p.seconds for p in phases},
            phases=phases,
            server=running,
            protocol=ENGINES[engine].protocol,
        )
