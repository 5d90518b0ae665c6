"""Engine command lines, and which of the user's arguments they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import ConfigError
from builder.format.manifest import File, Manifest
from builder.runtime import settings
from builder.runtime.engines import ENGINES, Launch, check, onnx_file


def launch(*args: str, name: str = "m", folder: Path = Path("/m"), files: tuple[str, ...] = (), gpu: str = "auto") -> Launch:
    listed = tuple(File(path, 0, "0" * 64, "0" * 16, "raw") for path in files)
    return Launch(folder, Manifest(name, "", "", "", listed, ()), "127.0.0.1", 9, args, gpu)


def test_every_engine_can_be_chosen() -> None:
    assert set(settings.ENGINES) == set(ENGINES)


def test_vllm() -> None:
    argv = ENGINES["vllm"].command(launch("--max-model-len", "4096")).argv
    assert argv[0].endswith("/vllm")
    assert argv[1:] == [
        "serve",
        "/m",
        "--served-model-name",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        "9",
        "--max-model-len",
        "4096",
    ]


def test_sglang_is_asked_for_its_health_without_inference() -> None:
    command = ENGINES["sglang"].command(launch("--tp", "2"))
    assert command.argv[1:6] == ["-m", "sglang.launch_server", "--model-path", "/m", "--served-model-name"]
    assert command.argv[6:] == ["m", "--host", "127.0.0.1", "--port", "9", "--tp", "2"]
    assert command.env == {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}
    assert ENGINES["sglang"].health == "/health"


def test_tensorrt_llm_gets_a_folder_that_has_the_served_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    argv = ENGINES["tensorrt-llm"].command(launch("--tp_size", "2", folder=tmp_path)).argv
    assert argv[0].endswith("/trtllm-serve")
    assert (argv[1], Path(argv[2]).name, Path(argv[2]).is_dir()) == ("serve", "m", True)
    assert (Path(argv[2]) / "config.json").exists()
    assert argv[3:] == ["--host", "127.0.0.1", "--port", "9", "--tp_size", "2"]


@pytest.mark.parametrize(("gpu", "provider"), [("required", "cuda"), ("auto", "auto"), ("none", "cpu")])
def test_onnxruntime(gpu: str, provider: str) -> None:
    argv = ENGINES["onnxruntime"].command(launch("--parallel", "4", files=("a.json", "onnx/model.onnx"), gpu=gpu)).argv
    assert argv[1:7] == ["-m", "builder.runtime.onnxruntime", "--model", "/m/onnx/model.onnx", "--name", "m"]
    assert argv[7:] == ["--host", "127.0.0.1", "--port", "9", "--provider", provider, "--parallel", "4"]


@pytest.mark.parametrize("given", [["--model-file", "b.onnx"], ["--model-file=b.onnx"]])
def test_onnxruntime_takes_the_file_the_user_names(given: list[str]) -> None:
    argv = ENGINES["onnxruntime"].command(launch("--queue", "1", *given, "--threads", "2", files=("a.onnx", "b.onnx"))).argv
    assert argv[4] == "/m/b.onnx"
    assert argv[-4:] == ["--queue", "1", "--threads", "2"]


def test_an_onnx_file_must_be_clear() -> None:
    with pytest.raises(ConfigError, match=r"no \.onnx file"):
        onnx_file(launch(files=("a.json",)).manifest)
    with pytest.raises(ConfigError, match=r"2 ONNX models in it: a\.onnx, b\.onnx"):
        onnx_file(launch(files=("b.onnx", "a.onnx")).manifest)
    with pytest.raises(ConfigError, match="not a file of m"):
        ENGINES["onnxruntime"].command(launch("--model-file", "../x.onnx", files=("a.onnx",)))


@pytest.mark.parametrize(
    ("engine", "arg"),
    [
        ("vllm", "--port"),
        ("vllm", "--port=80"),
        ("vllm", "--model"),
        ("vllm", "--host"),
        ("vllm", "--hos"),  # argparse takes the beginning of an option for it
        ("vllm", "--served_model_name"),
        ("vllm", "--served-model"),
        ("vllm", "--uds"),
        ("sglang", "--model-path"),
        ("sglang", "--model"),
        ("sglang", "--port"),
        ("tensorrt-llm", "--port"),
        ("tensorrt-llm", "--served_model_name"),
        ("onnxruntime", "--provider"),
        ("onnxruntime", "--name"),
        ("triton", "--http-port"),
        ("triton", "--model-repository=/x"),
        ("llama.cpp", "--alias"),
        ("transformers", "--host"),
    ],
)
def test_what_the_runtime_decides_is_refused(engine: str, arg: str) -> None:
    with pytest.raises(ConfigError, match=r"is decided by the runtime") as caught:
        check(engine, ["--fine", "x", arg, "y"])
    assert arg.partition("=")[0] in caught.value.message


@pytest.mark.parametrize(
    ("engine", "arg"), [("vllm", "--api-key=secret-1"), ("sglang", "--ssl-keyfile"), ("vllm", "--ssl_certfile")]
)
def test_a_server_that_the_warm_up_could_not_ask_is_refused(engine: str, arg: str) -> None:
    with pytest.raises(ConfigError, match="could not ask such a server") as caught:
        check(engine, [arg])
    assert "secret-1" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vllm", ["--model-impl", "auto", "--grpc-port", "1", "-O3", "model", "-h"]),
        ("sglang", ["--model-loader-extra-config", "{}", "--tp", "2"]),
        ("onnxruntime", ["--model-file", "a.onnx"]),
        ("triton", ["--model-control-mode", "none", "--http-thread-count=2"]),
        ("command", ["srv", "--port", "{port}"]),
    ],
)
def test_other_arguments_are_the_users(engine: str, args: list[str]) -> None:
    assert check(engine, args) is ENGINES[engine]


def files(folder: Path, *paths: str) -> tuple[str, ...]:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    return paths


def test_a_model_repository_is_served_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no wheel: the tritonserver on the PATH
    listed = files(tmp_path, "m/config.pbtxt", "m/1/model.py", "other/config.pbtxt")
    files(tmp_path, ".builder/manifest")
    argv = ENGINES["triton"].command(launch("--log-verbose=1", folder=tmp_path, files=listed)).argv
    assert argv[:2] == ["tritonserver", "--model-repository"]
    assert sorted(p.name for p in Path(argv[2]).iterdir()) == ["m", "other"]
    assert (Path(argv[2]) / "m" / "1" / "model.py").is_file()
    assert argv[3:] == [
        "--http-address", "127.0.0.1", "--http-port", "9", "--allow-grpc=false", "--allow-metrics=false", "--log-verbose=1"
    ]  # fmt: skip
    asked = ENGINES["triton"].command(launch("--grpc-port=7", "--metrics-port", "8", folder=tmp_path, files=listed)).argv
    assert not [arg for arg in asked if arg.startswith("--allow")]


def test_one_model_becomes_a_repository_under_the_served_name(tmp_path: Path) -> None:
    listed = files(tmp_path, "config.pbtxt", "1/model.py")
    argv = ENGINES["triton"].command(launch(folder=tmp_path, files=listed)).argv
    repository = Path(argv[argv.index("--model-repository") + 1])
    assert [p.name for p in repository.iterdir()] == ["m"]
    assert (repository / "m" / "1" / "model.py").is_file()


def test_what_is_no_repository_for_the_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected config\.pbtxt, <version>/ or m/ in it, found x, y"):
        ENGINES["triton"].command(launch(folder=tmp_path, files=("y/1/model.py", "x/1/model.py")))
    listed = files(tmp_path, "config.pbtxt", "1/model.py")
    (tmp_path / "config.pbtxt").write_text('# name: "a"\nname: "linear"\nbackend: "python"\n')
    with pytest.raises(ConfigError, match="says name: 'linear'"):
        ENGINES["triton"].command(launch(folder=tmp_path, files=listed))
