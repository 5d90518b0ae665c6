"""Pushes, tags, copies and collections in any order, some of them killed, against a model of what must be there.

Always: every ref leads to a complete model, and to the version that the model says (or, after a kill, to the one before or
after). Nothing that a ref led to, and nothing younger than the grace, is ever deleted.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from builder.errors import ConfigError, IntegrityError
from builder.stores.directory import DirectoryStore
from builder.weights import refs
from builder.weights.copy import copy
from builder.weights.gc import gc
from builder.weights.lease import TIMING
from tests.models import write_safetensors
from tests.unit.weights.build import ENGINE, push
from tests.unit.weights.dying import DyingStore, Killed, age, every_ref_is_complete

NAMES = st.sampled_from(["m", "n"])
TAGS = st.sampled_from(["v1", "v2"])
VERSIONS = st.integers(0, 3)
STORES = st.sampled_from(["a", "b"])
CALLS = st.one_of(st.none(), st.integers(0, 25))  # the call at which the process is killed
GRACE_S = 3600.0


@pytest.fixture(scope="module", autouse=True)
def models() -> Any:
    """Four versions; each shares a tensor with the one before."""
    root = Path(tempfile.mkdtemp())
    for n in range(4):
        (root / str(n)).mkdir()
        shapes = [(f"layers.{i}.weight", [16, 16]) for i in (n, n + 1)]
        write_safetensors(root / str(n) / "model.safetensors", shapes)
        (root / str(n) / "config.json").write_text("{}")
    Machine.models = root
    yield
    shutil.rmtree(root)


class Machine(RuleBasedStateMachine):
    models: Path

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.refs: dict[str, dict[str, str]] = {"a": {}, "b": {}}
        for name in ("m", "n"):
            self.push("a", name, 0, None)
            age(self.root / "a", 86_400)
            self.push("a", name, 1, None)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    def act(self, store: str, at: int | None, do: Any, changes: dict[str, str | None]) -> None:
        """do(store), perhaps killed; `changes`: refs it writes in turn, None for a ref that goes."""
        dying = DyingStore(self.root / store, -1 if at is None else at)
        try:
            do(dying)
        except Killed:
            age(self.root, TIMING.expiry_s + 1, "a/leases", "b/leases")
            found = every_ref_is_complete(self.root / store)
            want = dict(self.refs[store])
            for ref, digest in itertools.chain([("", None)], changes.items()):  # as far as it came
                want = {k: v for k, v in {**want, ref: digest}.items() if v} if ref else want
                if found == want:
                    break
            assert found == want
            self.refs[store] = found
            return
        self.refs[store] = {k: v for k, v in {**self.refs[store], **changes}.items() if v}

    @rule(store=STORES, name=NAMES, version=VERSIONS, at=CALLS)
    def push(self, store: str, name: str, version: int, at: int | None) -> None:
        folder = self.models / str(version)
        with tempfile.TemporaryDirectory() as aside:  # its digest, whatever becomes of the push
            digest = push(folder, DirectoryStore(Path(aside)), name=name, chunk_bytes=512).digest
        self.act(store, at, lambda s: push(folder, s, name=name, chunk_bytes=512), {name: digest})

    @rule(store=STORES, name=NAMES, tag=TAGS, at=CALLS, force=st.booleans())
    def tag(self, store: str, name: str, tag: str, at: int | None, force: bool) -> None:
        known = self.refs[store]
        if name not in known:
            return
        whole = f"{name}@{tag}"
        if known.get(whole, known[name]) != known[name] and not force:
            with pytest.raises(ConfigError):
                refs.tag(DirectoryStore(self.root / store), name, tag)
            return
        self.act(store, at, lambda s: refs.tag(s, name, tag, force=force), {whole: known[name]})

    @rule(store=STORES, name=NAMES, tag=st.one_of(st.just(""), TAGS), at=CALLS)
    def untag(self, store: str, name: str, tag: str, at: int | None) -> None:
        ref = f"{name}@{tag}" if tag else name
        if ref not in self.refs[store]:
            with pytest.raises(IntegrityError):
                refs.delete(DirectoryStore(self.root / store), ref, force=True)
            return
        self.act(store, at, lambda s: refs.delete(s, ref, force=True), {ref: None})

    @rule(store=STORES, name=NAMES, at=CALLS)
    def copy(self, store: str, name: str, at: int | None) -> None:
        other = "b" if store == "a" else "a"
        if name not in self.refs[store]:
            return
        digest = self.refs[store][name]
        source = DirectoryStore(self.root / store)
        self.act(other, at, lambda s: copy(source, name, s, engine=ENGINE, memory=1 << 27), {name: digest})

    @rule(store=STORES, keep_last=st.integers(0, 2), at=CALLS)
    def collect(self, store: str, keep_last: int, at: int | None) -> None:
        root = self.root / store
        if not root.exists():
            return
        before = list(DirectoryStore(root).entries(""))
        self.act(
            store,
            at,
            lambda s: gc(s, engine=ENGINE, grace_s=GRACE_S, keep_last=keep_last, dry_run=False, wait_s=0),
            {},
        )
        after = {e.key for e in DirectoryStore(root).entries("")}
        gone = [e for e in before if e.key not in after and not e.key.startswith("leases/")]
        assert all(time.time() - e.modified > GRACE_S for e in gone)
        if at is None:
            again = gc(DirectoryStore(root), engine=ENGINE, grace_s=GRACE_S, keep_last=keep_last)
            assert (again.manifests, again.chunks, again.signatures) == ((), 0, 0)

    @rule(store=STORES)
    def a_day_goes_by(self, store: str) -> None:
        age(self.root / store, 86_400)

    @invariant()
    def every_ref_leads_to_what_it_should(self) -> None:
        for store, want in getattr(self, "refs", {}).items():
            assert every_ref_is_complete(self.root / store) == want


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
