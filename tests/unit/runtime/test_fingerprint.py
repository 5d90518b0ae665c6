"""What a compile cache is compared by: everything that decides what is compiled, and no secret."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from builder.format.compiled import Fingerprint
from builder.runtime import fingerprint, gpu
from builder.runtime.settings import read

FOUND = gpu.Found("13.0", "580.65.06", (gpu.Device(0, "NVIDIA H100 80GB HBM3", "9.0"),))
WORD = "hunter22"


def here(environ: dict[str, str] | None = None, found: gpu.Found | None = FOUND) -> Fingerprint:
    own = {"BUILDER_ENGINE": "vllm", "BUILDER_COMPILE_CACHE_ROOT": "/opt/cache", "HOME": "/home/app"}
    return fingerprint.here(read({**own, **(environ or {})}), "m", "sha256:" + "0" * 64, found)


def started(*args: str, engine: str = "vllm") -> Fingerprint:
    return here({"BUILDER_ENGINE": engine, "BUILDER_ENGINE_ARGS": json.dumps(args)})


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--hf-token", WORD, "--tp=2"], "--hf-token *** --tp=2"),
        (["--api-key", WORD, WORD, "--tp", "2"], "--api-key *** *** --tp 2"),
        (["--password=a b", "--admin_auth", WORD], "--password=*** --admin_auth ***"),
        (["--proxy", f"http://me:{WORD}@host/x"], "--proxy http://***@host/x"),
        (["--url=https://host/x?sig=" + WORD + "&v=1"], "--url=https://host/x?sig=***&v=1"),
        (["--header", f"Authorization: Bearer {WORD}"], "--header Authorization: ***"),
        (["--kv-transfer-config", f'{{"password":"{WORD}","tp":2}}'], '--kv-transfer-config {"password":***,"tp":2}'),
        (["--x", f'{{"apiKeys": ["{WORD}", "{WORD}"]}}'], '--x {"apiKeys": ***}'),
        (["--x", '{"enable_auth":true,"level":3}'], '--x {"enable_auth":***,"level":3}'),
        (["--x", "hf_" + "a" * 24], "--x ***"),
    ],
)
def test_a_secret_argument_is_not_written_down(args: list[str], field: str) -> None:
    assert started(*args).fields["engine_args"] == field


@pytest.mark.parametrize(
    "args",
    [
        ["--max-num-batched-tokens", "8192"],
        ["--max-total-tokens=5"],
        ["--tokenizer-mode", "slow"],
        ["--skip-tokenizer-init", "--enforce-eager"],
        ["--enable-auth", "--enforce-eager"],
        ["--compilation-config", '{"cache_key": "x", "level": 3}'],
        ["--per-token", "8"],
    ],
)
def test_an_argument_that_is_no_secret_is(args: list[str]) -> None:
    assert started(*args).fields["engine_args"] == " ".join(args)
    assert started(*args[:-1], "?").key != started(*args).key


def test_of_a_command_only_a_digest_is_kept() -> None:
    args = ("env", f"API_KEY={WORD}", "bash", "-lc", f"export HF_TOKEN='{WORD}'; serve {WORD}")
    mine = started(*args, engine="command")
    assert mine.fields["engine_args"].startswith("sha256:")
    assert WORD.encode() not in mine.to_bytes()
    assert mine.key == started(args[0], "API_KEY=other", *args[2:], engine="command").key
    assert mine.key != started(*args[:-1], "export HF_TOKEN=; serve 2", engine="command").key
    scripts = [
        started("-c", f"API_KEY={word} serve --tp {n}", engine="command").key for word, n in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert scripts[0] == scripts[1] != scripts[2]
    assert started(engine="command").fields["engine_args"] == ""


SECRET = [
    "VLLM_API_KEY", "SGLANG_AUTH_KEY", "VLLM_HTTP_BASIC_AUTH", "VLLM_ROUTER_PASSWD", "VLLM_S3_SIGNATURE",
    "TLLM_X_HMAC_KEY",
]  # fmt: skip
PASSING = [
    "VLLM_LOGGING_LEVEL", "VLLM_HOST_IP", "VLLM_PORT_8000_TCP_PROTO", "CUDA_VISIBLE_DEVICES", "PATH", "TORCH_LOGS",
    "FLASHINFER_LOGLEVEL", "VLLM_DP_RANK", "VLLM_DP_RANK_LOCAL", "VLLM_RPC_BASE_PATH", "VLLM_TORCH_PROFILER_DIR",
    "TORCH_TRACE", "VLLM_INSTANCE_ID", "TORCHELASTIC_RUN_ID", "VLLM_X_RUN_ID",
]  # fmt: skip
COUNTS = [
    "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
    "VLLM_LOGITS_PROCESSOR_THREADS", "SGLANG_LOGIN_MAX_PASSES", "SGLANG_PER_TOKEN_GROUP_QUANT_8BIT_V2",
    "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE", "TLLM_X", "TRTLLM_X", "NUMBA_CPU_NAME", "CUTE_DSL_ARCH", "QUACK_X",
    "TVM_FFI_X", "TORCH_COMPILE_CACHE_KEY_TAG", "CFLAGS",
]  # fmt: skip


@pytest.mark.parametrize("name", [*SECRET, *PASSING])
def test_what_differs_from_pod_to_pod_and_secrets_are_no_part_of_it(name: str) -> None:
    assert here({name: WORD}) == here()


@pytest.mark.parametrize("name", COUNTS)
def test_what_decides_the_code_is_part_of_it(name: str) -> None:
    assert here({name: "8"}).fields[f"env.{name}"] == "8"
    assert here({name: f"http://u:{WORD}@h"}).fields[f"env.{name}"] == "http://***@h"


def test_differences_hide_what_an_older_capture_wrote_down() -> None:
    was = Fingerprint({"env.VLLM_API_KEY": WORD, "engine_args": f"--api-key {WORD} --tp 2", "env.VLLM_X": f"http://u:{WORD}@h"})
    now = Fingerprint({"engine_args": "--api-key *** --tp 2", "env.VLLM_X": "1"})
    assert was.differences(now) == [
        "engine_args: captured with another value, that is not shown",
        "env.VLLM_API_KEY: captured with another value, that is not shown",
        "env.VLLM_X: captured with http://***@h, here 1",
    ]


def test_without_a_gpu_the_threads_count() -> None:
    assert "cpus" in here(found=None).fields
    assert "cpus" not in here().fields


def compiler(folder: Path, says: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n[ \"$*\" = '-m64 --version' ] && echo '{says}' && echo more\n")
    path.chmod(0o755)
    return f"{path} -m64"


def test_the_system_is_its_release_its_c_library_and_its_compiler(tmp_path: Path) -> None:
    said = here({"CC": compiler(tmp_path, "cc 12.2")}).fields["system"]
    assert said.startswith(platform.freedesktop_os_release()["ID"])
    assert said.endswith(" ".join([*platform.libc_ver(), "cc 12.2"]))
    assert here({"CC": compiler(tmp_path, "cc 14.1")}).fields["system"] == said.replace("12.2", "14.1")


@pytest.mark.parametrize("cc", ["/no/such/compiler", "'", "sh -c false"])
def test_a_compiler_that_does_not_answer_is_none(cc: str) -> None:
    assert fingerprint.compiler(cc) == ""


def test_the_cpu_is_its_model_and_its_instructions(tmp_path: Path) -> None:
    def cpu(flags: str) -> str:
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: GenuineIntel\nmodel\t: 143\nflags\t: {flags}\n\nflags: x\n")
        return fingerprint.cpu(tmp_path / "cpuinfo")

    assert cpu("fpu avx2 avx512f ibrs") == cpu("avx512f avx2 ibpb")  # mitigations change with the kernel
    assert cpu("avx2") != cpu("avx2 avx512f")
    assert "GenuineIntel 143 isa:" in cpu("avx2")
    assert fingerprint.cpu(tmp_path / "gone").endswith("isa:e3b0c44298fc")
