"""builder lint: each rule on what it is for and on what only looks like it; the parser on all of the syntax."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from builder.cli.lint import command
from builder.errors import ConfigError
from builder.image.lint import RULES, lint, sarif
from builder.image.lint.parse import parse

SLIM = "FROM debian:bookworm-slim\n"
USER = "USER 10001:0\n"


def found(text: str, **options: object) -> list[tuple[int, str]]:
    return [(f.line, f.rule.id) for f in lint(text, path="Dockerfile", **options)]  # type: ignore[arg-type]


def rules(body: str, *, base: str = SLIM, **options: object) -> set[str]:
    return {rule for _, rule in found(base + body + "\n" + USER, **options)}


BAD = {
    "devel-final": [
        "FROM nvidia/cuda:12.9.1-cudnn-devel-ubuntu22.04\n" + USER,
        "ARG FLAVOUR=devel\nFROM docker.io/nvidia/cuda:13.0.0-${FLAVOUR}-ubi9\n" + USER,
        "FROM pytorch/pytorch:2.9.0-cuda13.0-cudnn9-devel\n" + USER,
        "FROM nvidia/cuda:12.9.1-devel-ubuntu22.04 AS base\nFROM base\n" + USER,
        "FROM nvcr.io/nvidia/pytorch:25.08-py3\n" + USER,
        "ARG V=12.8.1\nARG BASE=nvidia/cuda:${V}-devel-ubuntu22.04\nFROM ${BASE} AS b\nFROM b\n" + USER,
    ],
    "cuda-twice": [
        "FROM nvidia/cuda:12.9.1-runtime-ubuntu22.04\nRUN pip install --no-cache-dir torch==2.9.0\n" + USER,
        SLIM + "RUN apt-get update && apt-get install -y cuda-nvrtc-13-0\nRUN uv pip install vllm\n" + USER,
        "FROM nvidia/cuda:12.8.1-runtime-ubi9\nRUN uv pip install --system -r requirements/cuda.txt\n" + USER,
        "FROM nvidia/cuda:12.8.1-runtime-ubi9\nRUN pip install x --extra-index-url https://h/whl/cu128\n" + USER,
        "FROM python:3.12 AS w\nRUN pip install vllm\nFROM nvidia/cuda:13.0.0-cudnn-runtime-ubi9\nCOPY --from=w /v /v\n" + USER,
    ],
    "legacy-cuda-env": [SLIM + "ENV CUDA_VERSION=12.9.1\n" + USER, SLIM + "ENV A=b \\\n    CUDA_VERSION=13.0\n" + USER],
    "ld-library-path": [
        SLIM + "RUN pip install torch\nENV LD_LIBRARY_PATH=/usr/local/cuda/lib64:$LD_LIBRARY_PATH\n" + USER,
        SLIM + "ENV LD_LIBRARY_PATH /usr/lib\nRUN pip install \\\n  'sglang[all]'\n" + USER,
    ],
    "giant-layer": [
        SLIM + "RUN pip install vllm==0.32.0\n" + USER,
        "FROM python:3.12 AS w\nRUN uv pip install --system vllm\nFROM python:3.12-slim\nCOPY --from=w /opt/venv /opt/venv\n"
        + USER,
        "FROM python:3.12 AS w\nRUN pip install torch\nFROM w AS x\nFROM debian\nCOPY --from=1 /usr/local /usr/local\n" + USER,
    ],
    "root-user": [SLIM, SLIM + "USER 1000\nUSER root\n", SLIM + "USER 0:0\n", "FROM a AS x\nUSER 5\nFROM b\n"],
    "mtime-pyc": [
        "ARG SOURCE_DATE_EPOCH\n" + SLIM + "RUN python3 -m compileall -q /opt\n" + USER,
        SLIM + "ARG SOURCE_DATE_EPOCH\nRUN pip install x\n" + USER,
        SLIM + "ENV SOURCE_DATE_EPOCH=0\nRUN uv sync --compile-bytecode\n" + USER,
    ],
    "pipe-to-shell": [
        SLIM + "RUN curl -fsSL https://x/install.sh | sh\n" + USER,
        SLIM + "RUN apt-get update \\\n && wget -qO- https://x | sudo -E bash -\n" + USER,
        SLIM + "RUN bash <(curl -s https://x)\n" + USER,
        SLIM + 'RUN sh -c "$(curl -fsSL https://x)"\n' + USER,
        SLIM + "RUN <<EOF\ncurl https://x | python3 -\nEOF\n" + USER,
        "FROM a AS tools\nRUN curl https://x|bash\n" + SLIM + USER,
    ],
    "weights-in-layer": [
        SLIM + "COPY models/*.safetensors /models/\n" + USER,
        SLIM + 'ADD ["https://x/model.gguf", "/m/"]\n' + USER,
        SLIM + "RUN hf download org/model --local-dir /m\n" + USER,
        SLIM + "RUN python - <<'PY'\nfrom huggingface_hub import snapshot_download\nsnapshot_download('a/b')\nPY\n" + USER,
        SLIM + "RUN curl -LO https://x/a.gguf\n" + USER,
    ],
    "secret-in-env": [
        SLIM + "ENV HF_TOKEN=abc\n" + USER,
        SLIM + "ARG HF_TOKEN\n" + USER,
        "ARG PIP_PASSWORD\n" + SLIM + USER,
        SLIM + "ENV aws_secret_access_key = x\n" + USER,
        SLIM + "RUN pip install -i https://bob:hunter2@index/simple x\n" + USER,
        SLIM + "RUN HF=hf_" + "a" * 34 + " python x.py\n" + USER,
    ],
}

GOOD = {
    "devel-final": [
        "FROM nvidia/cuda:12.9.1-devel-ubuntu22.04 AS build\nFROM debian:bookworm-slim\nCOPY --from=build /x /x\n" + USER,
        "FROM registry/developer-tools:1\n" + USER,
    ],
    "cuda-twice": [
        "FROM nvidia/cuda:13.0.0-base-ubuntu24.04\nRUN pip install torch\n" + USER,
        "FROM nvidia/cuda:13.0.0-runtime-ubuntu24.04\nCOPY llama-server /\n" + USER,
        "FROM nvidia/cuda:13.0.0-devel-ubi9 AS b\nRUN make\nFROM python:3.12-slim\nCOPY --from=b /s /s\nRUN pip install torch\n"
        + USER,
        SLIM + "RUN pip install torchmetrics pytorch-lightning\nRUN apt-get install cuda-keyring\n" + USER,
    ],
    "legacy-cuda-env": [SLIM + "ENV CUDA_VERSION=13.0\nENV NVIDIA_REQUIRE_CUDA=cuda>=13.0\n" + USER],
    "ld-library-path": [SLIM + "ENV LD_LIBRARY_PATH=/opt/ort\nRUN pip install onnxruntime\n" + USER],
    "giant-layer": [
        "FROM python:3.12 AS w\nRUN pip install vllm\nFROM debian\nCOPY --from=w /o/nvidia /n\nCOPY --from=w /o/torch /t\n"
        + USER,
        SLIM + "RUN echo pip install vllm-is-not-this\n" + USER,
    ],
    "root-user": [SLIM + USER, SLIM + "USER root\nRUN x\nUSER app\n", "FROM a AS x\nUSER 5\nFROM x\n"],
    "mtime-pyc": [
        SLIM + "RUN pip install x\n" + USER,
        SLIM
        + "ARG SOURCE_DATE_EPOCH\nRUN pip install --no-compile x && python -m compileall --invalidation-mode checked-hash /\n"
        + USER,
        SLIM + "ARG SOURCE_DATE_EPOCH\nENV PYC_INVALIDATION_MODE=UNCHECKED_HASH\nRUN uv sync --compile-bytecode\n" + USER,
    ],
    "pipe-to-shell": [
        SLIM + "RUN curl -o f https://x && sha256sum -c sums && sh f\n" + USER,
        SLIM + "RUN curl https://x | tar -xz\nRUN cat a | sh\n" + USER,
        SLIM + "RUN curl https://x || sh fallback\n" + USER,
    ],
    "weights-in-layer": [
        SLIM + "COPY tokenizer.json /m/\nRUN pip install safetensors gguf\n" + USER,
        "FROM a AS get\nRUN hf download x\n" + SLIM + USER,
    ],
    "secret-in-env": [
        SLIM + "ENV HF_TOKEN= MAX_TOKENS=5 TOKENIZERS_PARALLELISM=false HF_TOKEN_PATH=/run/t\n" + USER,
        SLIM + "ARG SCCACHE_S3_NO_CREDENTIALS=0\n" + USER,
        SLIM + "RUN --mount=type=secret,id=HF_TOKEN,env=HF_TOKEN x\n" + USER,
        SLIM + "RUN git clone https://$USER:$TOKEN@host/x && curl https://host:8080/a@b\n" + USER,
    ],
}


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in BAD.items() for text in texts])
def test_a_rule_finds_what_it_is_for(rule: str, text: str) -> None:
    assert rule in {r for _, r in found(text)}


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in GOOD.items() for text in texts])
def test_a_rule_is_silent_where_nothing_is_wrong(rule: str, text: str) -> None:
    assert rule not in {r for _, r in found(text)}


@pytest.mark.parametrize(
    ("setting", "gpus", "hits"),
    [
        ("ENV TORCH_CUDA_ARCH_LIST='8.0 8.6'", ("9.0",), 1),
        ("ENV TORCH_CUDA_ARCH_LIST='8.0 8.6+PTX'", ("9.0",), 1),  # it runs, but 8.0 is for nobody
        ("ENV TORCH_CUDA_ARCH_LIST=9.0a", ("9.0",), 0),
        ("ENV TORCH_CUDA_ARCH_LIST=8.0", ("8.6",), 0),
        ("ENV TORCH_CUDA_ARCH_LIST=8.6", ("8.0",), 1),
        ('ENV TORCH_CUDA_ARCH_LIST="7.5 8.0 9.0 10.0 12.0+PTX"', ("9.0",), 1),
        ("RUN cmake -DCMAKE_CUDA_ARCHITECTURES='80-real;90-real' .", ("8.0", "9.0"), 0),
        ("RUN cmake -DCMAKE_CUDA_ARCHITECTURES=75-real .", ("8.0",), 1),
        ("RUN cmake -DCMAKE_CUDA_ARCHITECTURES=75 .", ("8.0",), 0),  # with PTX
        ("ARG CUDAARCHS=90", ("10.0", "12.0"), 0),
        ("ENV TORCH_CUDA_ARCH_LIST=8.0", (), 0),
        ("ENV TORCH_CUDA_ARCH_LIST=$ARCHS", ("9.0",), 0),
        ("ARG archs='7.0 8.0'\nENV TORCH_CUDA_ARCH_LIST=${archs}", ("9.0",), 1),
    ],
)
def test_architectures_against_targets(setting: str, gpus: tuple[str, ...], hits: int) -> None:
    text = f"FROM nvidia/cuda:13.0.0-devel-ubi9 AS build\n{setting}\n{SLIM}{USER}"
    assert [r for _, r in found(text, gpu_archs=gpus)].count("arch-list") == hits


def test_every_rule_has_a_bad_and_a_good_case() -> None:
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids)
    assert set(ids) - {"arch-list"} == set(BAD) == set(GOOD)
    assert all(words.endswith(".") for rule in RULES for words in (rule.why, rule.fix))


def test_the_line_is_that_of_the_fault_not_of_the_instruction() -> None:
    text = SLIM + "RUN apt-get update \\\n # a comment\n\n && curl https://x | sh \\\n && true\n" + USER
    assert found(text) == [(5, "pipe-to-shell")]


def test_a_comment_silences_a_rule_for_one_instruction() -> None:
    quiet = "# builder lint ignore=pipe-to-shell, weights-in-layer\n"
    line = "RUN curl https://x | sh\n"
    assert found(SLIM + quiet + "# why\n" + line + USER) == []
    assert found(SLIM + quiet + line + line + USER) == [(4, "pipe-to-shell")]
    assert found(SLIM + line + USER, ignore=["pipe-to-shell"]) == []
    with pytest.raises(ConfigError, match="no-such: no such rule"):
        found(SLIM, ignore=["no-such"])


def test_the_parser_knows_the_syntax() -> None:
    text = """\
# syntax=docker/dockerfile:1
# escape=`
ARG V=1
FROM --platform=linux/amd64 a:${V}-${W:-x} AS Base
RUN one `
  # in between

  two
COPY --from=0 --chmod=0755 ["a b", "c"] /d/
RUN <<-'END' cat && <<OTHER cat
\tfirst
\tEND
second
OTHER
ONBUILD USER 0
ENV A="x y" B='z'
ENV C  d e
FROM base
"""
    file = parse(text, at="f")
    first = file.stages[0]
    assert (first.image, first.name, file.stages[1].base, file.directives["escape"]) == ("a:1-x", "base", 0, "`")
    _, run, copy, docs, user, one, two = first.instructions
    assert (run.value, run.line, [n for n, _ in run.lines]) == ("one two", 5, [5, 6, 7, 8])
    assert (copy.words(), copy.flag("chmod")) == (["a b", "c", "/d/"], "0755") or copy.argv is None
    assert docs.heredocs == ("\tfirst", "second")
    assert (user.keyword, user.value) == ("USER", "0")
    assert (one.pairs(), two.pairs()) == ({"A": "x y", "B": "z"}, {"C": "d e"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f: no FROM"),
        ("RUN x\n", "f:1: RUN before the first FROM"),
        ("FROM a\nRNU x\n", "f:2: unknown instruction 'RNU'"),
        ("FROM a\nRUN x \\\n", "f:2: the file ends within an instruction"),
        ("FROM a\nRUN <<E\nx\n", "f:3: the file ends within the heredoc E"),
        ("FROM a as\n", "f:1: expected FROM image"),
    ],
)
def test_what_is_no_dockerfile_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(text, at="f")


_SYNTAX = [
    "FROM",
    "RUN",
    "ENV",
    "ARG",
    "COPY",
    "USER",
    "--from=a",
    '["x","y"]',
    "<<E",
    "E",
    "\\",
    "#",
    "${B:-c}",
    "AS",
    "a",
    "0",
]
_WORDS = st.sampled_from([*_SYNTAX, "=", "\n", " ", "'", '"'])


@given(st.lists(_WORDS, max_size=40))
def test_any_text_is_a_dockerfile_or_one_clear_error(words: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        lint(" ".join(words), path="f", gpu_archs=("9.0",))


def test_sarif_names_rule_place_and_level() -> None:
    log = sarif(lint(SLIM + "USER root\n", path="a/Dockerfile"), "1.2")
    (run,) = log["runs"]
    (result,) = run["results"]
    assert (log["version"], result["ruleId"], result["level"]) == ("2.1.0", "root-user", "error")
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "root-user"
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("a/Dockerfile", 2)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/Dockerfile.gpu").write_text(SLIM + "RUN pip install vllm\n" + USER)
    (tmp_path / "x/readme").write_text("RUN")
    run = CliRunner().invoke(command, [str(tmp_path), "--sarif", str(tmp_path / "s.json"), "--format", "json"])
    assert run.exit_code == 0, run.output
    assert [f["rule"] for f in json.loads(run.stdout)["findings"]] == ["giant-layer"]
    assert json.loads((tmp_path / "s.json").read_text())["runs"][0]["results"]
    with pytest.raises(ConfigError, match="1 finding in 1 file"):
        CliRunner().invoke(command, [str(tmp_path), "--strict"], catch_exceptions=False, standalone_mode=False)
    piped = CliRunner().invoke(command, ["-"], input=SLIM + USER)
    assert piped.stdout == "nothing found in 1 file\n"
    for name, body, said in (
        ("none", None, "No such file"),
        ("bin", b"\xff", "not UTF-8"),
        ("big", b"#" * (5 << 20), "at most"),
    ):
        if body is not None:
            (tmp_path / name).write_bytes(body)
        with pytest.raises(ConfigError, match=said):
            CliRunner().invoke(command, [str(tmp_path / name)], catch_exceptions=False, standalone_mode=False)
