"""A real build of images/transformers-cpu: it proves itself, and serves a model whose answer is known beforehand.

The model is a LLaMA of 0.1 MB with random weights. It is made, and asked once, with the image's own transformers, without
any server; `builder verify` must then hear the same answer from the server, whose weights went through a store.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import pipeline, resources
from builder.config.load import Loaded, load
from builder.config.spec import Verify
from builder.engines.local import LocalEngine
from builder.image import machine
from builder.models.source import ModelRef
from builder.stores.open import open_store
from builder.verify import launch
from builder.verify.checks import ANSWER_TOKENS
from builder.verify.container import Options
from tests.bounds import BOUND_S
from tests.conftest import missing

pytestmark = pytest.mark.docker
FOLDER = resources.folder("images") / "transformers-cpu"
TAG = "builder-test/transformers-cpu:latest"
# A token for each character, so that every prompt has its own tokens and every answer is text. initializer_range: measured,
# the answer changes when any one of the 21 tensors is zeroed; with the usual 0.02 the query and key projections do not matter.
MAKE = """
import json, pathlib, string, sys, torch, transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
characters = string.ascii_letters + string.digits + string.punctuation + " " + chr(10)
made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<unk>", *characters])}, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Split(Regex("[^a]|a"), "isolated")
made.decoder = decoders.Fuse()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}"
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.5, bos_token_id=None, eos_token_id=None)).eval()
asked = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                      return_tensors="pt", return_dict=True)
said = model.generate(**asked, max_new_tokens=count, do_sample=False)[0, asked["input_ids"].shape[1]:]
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
for file in pathlib.Path(folder).iterdir():
    file.chmod(0o644)  # safetensors writes files that only their owner reads
print(json.dumps({"answer": tokenizer.decode(said)}))
"""


@pytest.fixture(scope="module")
def built(docker_engine: str) -> Iterator[Loaded]:
    """The description of the image that TAG now names."""
    loaded = load(FOLDER / "builder.yaml")
    wheels = machine.wheelhouse(loaded)
    if wheels is None or not any(wheels.glob("torch-*+cpu-cp311-*.whl")):
        missing("torch-wheel", "no folder of pip's find-links holds torch's CPU wheel for Python 3.11")
    pipeline.build_image(loaded, tag=TAG)
    yield loaded
    subprocess.run(["docker", "rmi", "-f", TAG], capture_output=True, check=False)


def docker_run(*args: str) -> str:
    """What the image printed, run without a network."""
    done = subprocess.run(["docker", "run", "--rm", "--network=none", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_model(folder: Path, prompt: str) -> str:
    """A model in `folder`, and its answer to `prompt`."""
    folder.mkdir()
    folder.chmod(0o777)  # written by the image's user
    run = ["-v", f"{folder}:/model", "--entrypoint", "python", TAG]
    out = docker_run(*run, "-c", MAKE, "/model", prompt, str(ANSWER_TOKENS))
    return str(json.loads(out.splitlines()[-1])["answer"])


def test_the_image_proves_itself(built: Loaded) -> None:
    docker_run("-v", f"{FOLDER / 'verify'}:/verify:ro", "--entrypoint", "sh", TAG, "-eux", "/verify")


def test_the_server_says_what_the_model_says(built: Loaded, tmp_path: Path) -> None:
    verify = Verify.model_validate({"gpu": "none", "load": {"concurrency": (1,), "requests": 4, "max_tokens": 8}})
    assert verify.expect.contains is None
    answer = make_model(tmp_path / "chat", verify.expect.prompt)
    assert len(set(answer)) > 4  # not one character repeated, which other weights might say too
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o755)  # read by the image's user
    spec = built.spec
    ref = ModelRef(source=str(tmp_path / "chat"), include=spec.model.include)
    pushed = pipeline.publish_weights(ref, open_store(str(store)), LocalEngine(2), name=spec.name, chunk_bytes=16 << 10)
    server = launch.of(spec, name=spec.name, manifest=pushed.manifest.digest, store=str(store), environ={})
    report = pipeline.verify_image(TAG, server, verify, box=Options(gpu="none", read_only=True), timeout_s=BOUND_S)
    report.raise_for_failures()
    assert report.ok
    checks = {c.id: c for c in report.checks}
    assert checks["engine.module-loading"].found.startswith("LAZY in ")
    assert {"answer.deterministic", "weights.manifest", "image.user", "ready.after-first-token", "load.1"} <= set(checks)
    assert report.answer.text == answer
    (level,) = report.load
    assert (level.requests, level.errors) == (4, 0)
