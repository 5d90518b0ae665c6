"""Metrics, records, exit codes, engine command lines: the small pure parts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import parser

from builder.errors import ConfigError
from builder.format.manifest import File, Manifest
from builder.format.phases import parse_lines
from builder.runtime import llamacpp
from builder.runtime.engines import ENGINES, Launch, check, gguf_file
from builder.runtime.metrics import metric, render
from builder.runtime.record import Lines, Recorder, process_started


def manifest(*paths: str) -> Manifest:
    files = tuple(File(path, 0, "0" * 64, "0" * 16, "raw") for path in paths)
    return Manifest("m", "", "", "", files, ())


def test_metrics_are_escaped_and_typed() -> None:
    labels = {"path": 'a"b\\c\nd'}
    page = render(
        [
            metric("x_total", "counter", "Back\\slash\nand line.", [(labels, 3), ({}, 0.1)]),
            metric("empty", "gauge", "Nothing.", []),
            metric("y", "gauge", "One.", True),
        ]
    )
    assert page.decode().splitlines() == [
        "# HELP x_total Back\\\\slash\\nand line.",
        "# TYPE x_total counter",
        'x_total{path="a\\"b\\\\c\\nd"} 3',
        "x_total 0.1",
        "# HELP y One.",
        "# TYPE y gauge",
        "y 1",
    ]


def test_prometheus_reads_the_page() -> None:
    page = render([metric("x", "gauge", "A \\ b\nc.", [({"l": 'q"\\\n'}, 1.5)]), metric("n_total", "counter", "N.", 7)])
    first, second = parser.text_string_to_metric_families(page.decode())
    assert (first.samples[0].labels, first.samples[0].value) == ({"l": 'q"\\\n'}, 1.5)
    assert (second.type, second.samples[0].value) == ("counter", 7)


def test_a_phase_is_recorded_when_it_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path / "phases")
    with recorder.phase("engine_init") as detail:
        detail["pid"] = 7
    with pytest.raises(KeyError), recorder.phase("stable"):
        raise KeyError
    assert [(p.phase, p.detail) for p in recorder.phases] == [("engine_init", {"pid": 7})]
    assert parse_lines(capsys.readouterr().out.splitlines()) == recorder.phases
    assert parse_lines((tmp_path / "phases").read_text().splitlines()) == recorder.phases


def test_an_unwritable_phase_file_does_not_stop_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path / "no" / "phases")
    recorder.add("stable", 1, 2)
    recorder.add("stable", 1, 2)
    shown = capsys.readouterr()
    assert len(parse_lines(shown.out.splitlines())) == 2
    assert shown.err.count("No such file or directory") == 1


def test_a_long_transfer_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter([0.0, 4.0, 12.0, 15.0])
    lines = Lines("weights", clock=lambda: next(ticks))
    task = lines.add("restore m", 100 << 20)
    for _ in range(3):
        lines.advance(task, 12 << 20)
    assert capsys.readouterr().err == "builder: weights: restore m: 24 of 100 MiB, 2 MiB/s\n"


def test_waiting_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Lines("weights").add("wait for another writer (/m.lock)")
    assert "wait for another writer" in capsys.readouterr().err


def test_the_process_began_before_now() -> None:
    assert 0 < time.time() - process_started() < 3600
    assert process_started() == pytest.approx(process_started(), abs=0.05)


def test_the_gguf_to_open() -> None:
    assert gguf_file(manifest("README.md", "a.gguf")) == "a.gguf"
    assert gguf_file(manifest("x-00002-of-00002.gguf", "x-00001-of-00002.gguf")) == "x-00001-of-00002.gguf"
    assert gguf_file(manifest("mmproj-f16.gguf", "a.gguf")) == "a.gguf"
    with pytest.raises(ConfigError, match=r"no \.gguf file"):
        gguf_file(manifest("model.safetensors"))
    with pytest.raises(ConfigError, match=r"2 GGUF models in it: q4\.gguf, q8\.gguf"):
        gguf_file(manifest("q8.gguf", "q4.gguf"))


def test_llamacpp_takes_the_file_the_user_names() -> None:
    launch = Launch(Path("/m"), manifest("q8.gguf", "q4.gguf"), "127.0.0.1", 9, ["--model-file", "q8.gguf", "--parallel", "2"])
    argv = ENGINES["llama.cpp"].command(launch).argv
    assert argv[1:5] == ["-m", "builder.runtime.llamacpp", "--model", "/m/q8.gguf"]
    assert argv[-2:] == ["--parallel", "2"]
    args = llamacpp.parser().parse_args(argv[3:])
    assert (args.model, args.alias, args.port, args.parallel) == ("/m/q8.gguf", "m", 9, 2)
    with pytest.raises(ConfigError, match="not a file of m"):
        ENGINES["llama.cpp"].command(Launch(Path("/m"), manifest("q4.gguf"), "h", 9, ["--model-file", "../x.gguf"]))


def test_transformers_gets_a_name_that_leads_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    command = ENGINES["transformers"].command(Launch(tmp_path, manifest("config.json"), "127.0.0.1", 9, ["--dtype", "float32"]))
    assert command.argv[1:] == ["serve", "m", "--host", "127.0.0.1", "--port", "9", "--dtype", "float32"]
    assert command.cwd is not None
    assert (command.cwd / "m" / "config.json").exists()


def test_a_command_of_ones_own() -> None:
    args = ["srv", "--at={host}:{port}", "{model}", "{other}", '{"a": 1}']
    launch = Launch(Path("/m"), manifest(), "127.0.0.1", 9, args)
    assert ENGINES["command"].command(launch).argv == ["srv", "--at=127.0.0.1:9", "/m", "{other}", '{"a": 1}']
    with pytest.raises(ConfigError, match="needs the command"):
        check("command", [])


def test_no_more_threads_than_cpus() -> None:
    assert 1 <= llamacpp.cpus() <= len(os.sched_getaffinity(0))
