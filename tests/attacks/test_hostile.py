"""Every hostile input is refused with an IntegrityError that says which file and why, quickly and without much memory."""

from __future__ import annotations

import resource
import time

import pytest

from builder.errors import IntegrityError
from builder.format import gguf, manifest, safetensors
from tests.attacks.hostile import GGUF, MANIFESTS, SAFETENSORS
from tests.attacks.hostile import manifest as good_manifest

PARSERS = {"safetensors": safetensors.parse, "gguf": gguf.parse}
CASES = [(kind, fault) for kind, table in (("safetensors", SAFETENSORS), ("gguf", GGUF)) for fault in table]


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_a_hostile_file_is_refused(kind: str, fault: str) -> None:
    body, words = {"safetensors": SAFETENSORS, "gguf": GGUF}[kind][fault]
    start = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        PARSERS[kind](lambda offset, size: body[offset : offset + size], len(body), path="evil.bin")
    assert words in caught.value.message
    assert caught.value.message.startswith("evil.bin: ")
    assert caught.value.where["file"] == "evil.bin"
    assert time.process_time() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20  # KiB: no count in a header was allocated


@pytest.mark.parametrize("fault", MANIFESTS)
def test_a_hostile_manifest_is_refused(fault: str) -> None:
    body, words = MANIFESTS[fault]
    start = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        manifest.parse(body, at="store/manifests/x")
    assert words in caught.value.message, caught.value.message
    assert caught.value.where["object"] == "store/manifests/x"
    assert time.process_time() - start < 2.0


def test_a_manifest_with_another_digest_is_refused() -> None:
    with pytest.raises(IntegrityError, match="expected sha256:00"):
        manifest.parse(good_manifest(), at="x", digest="sha256:" + "0" * 64)


def test_the_unchanged_manifest_is_taken() -> None:
    assert manifest.parse(good_manifest(), at="x").size == 8
