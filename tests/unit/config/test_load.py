"""builder.yaml: every fault with file, line, column and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.config.load import load, parse
from builder.errors import ConfigError

GOOD = """\
version: 1
name: demo
model: {source: ./model}
weights:
  store: s3://bucket/demo
  chunk_size: 16MiB
image:
  repository: demo
  engine: {name: llama.cpp, version: "2026.10"}
"""


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "builder.yaml")
    assert caught.value.exit_code == 2
    return caught.value


def test_a_good_file_is_read() -> None:
    spec = parse(GOOD.encode(), "builder.yaml")
    assert spec.weights.chunk_bytes == 16 << 20
    assert spec.serve.port == 8000


def test_an_unknown_key_is_named_with_its_place_and_a_guess() -> None:
    error = refused(GOOD.replace("chunk_size", "chunk_sise"))
    assert error.message == "builder.yaml:6:3: weights.chunk_sise: unknown key; did you mean 'chunk_size'?"
    assert error.where == {"file": "builder.yaml", "line": 6, "column": 3, "key": "weights.chunk_sise"}


def test_an_unknown_key_unlike_any_lists_the_known_ones() -> None:
    assert "store, endpoint_url" in refused(GOOD.replace("  chunk_size: 16MiB", "  zzz: 1")).hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  python: 3.10", "image.python: expected text; found the number 3.10"),
        ("  python: 3.1_0", "image.python: expected text; found the number 3.1_0"),
        ("  tag: no", "image.tag: expected text; found the bool no"),
        ("  tag: 12:30", "image.tag: expected text; found the number 12:30"),
        ("  tag: 017", "image.tag: expected text; found the number 017"),
        ("  tag: 2026-01-01", "image.tag: expected text; found the timestamp 2026-01-01"),
        ("  tag: ~", "image.tag: expected text; found nothing"),
        ("  gpu_archs: [9.0]", "image.gpu_archs[0]: expected text; found the number 9.0"),
        ('  gpu_archs: "9.0"', "image.gpu_archs: expected a list; found '9.0'"),
        ("  env: {A: yes}", "image.env.A: expected text; found the bool yes"),
        ('  index: "true"', "image.index: expected true or false; found 'true'"),
        ("serve: {port: 12:30}", "serve.port: expected a whole number; found the number 12:30"),
        ("serve: {port: 8000.0}", "serve.port: expected a whole number; found the number 8000.0"),
        ("verify: {budget: {cold_start_p95: 60}}", "expected a duration with a unit, such as 60s; found the number 60"),
        ("verify: {budget: {cold_start_p95: 1:00}}", "expected a duration with a unit, such as 60s; found the number 1:00"),
        ("bake: {volume: {size: 120}}", "expected a size with a unit, such as 16MiB; found the number 120"),
        ("serve: {port: 8000, control_port: 8000}", "serve.port and serve.control_port are the same"),
    ],
)
def test_yaml_traps_and_wrong_types_are_refused(line: str, message: str) -> None:
    assert message in refused(GOOD + line + "\n").message


def test_a_number_that_should_be_text_gets_the_quotes_as_hint() -> None:
    assert refused(GOOD + "  python: 3.10\n").hint == 'YAML reads 3.10 as a float; write it in quotes: "3.10"'


def test_a_chunk_size_outside_its_bounds_is_reported_once() -> None:
    message = refused(GOOD.replace("16MiB", "4MiB")).message
    assert message == "builder.yaml:6:15: weights.chunk_size: expected auto, or 8MiB to 64MiB; found '4MiB'"


def test_all_faults_are_reported_in_the_order_of_the_file() -> None:
    error = refused(GOOD.replace("name: demo", "name: DEMO").replace("16MiB", "lots"))
    assert [line.split(":")[1] for line in error.message.splitlines()] == ["2", "6"]
    assert len(error.where["faults"]) == 2


def test_a_missing_key_is_named() -> None:
    assert "weights.store: is missing" in refused(GOOD.replace("  store: s3://bucket/demo\n", "")).message


def test_a_key_written_twice_is_refused() -> None:
    assert refused(GOOD + "name: other\n").message == "builder.yaml:10:1: name: occurs twice"


def test_a_literal_token_is_refused_without_repeating_it() -> None:
    token = "hf_" + "a" * 34
    error = refused(GOOD.replace("{source: ./model}", f"{{source: ./model, token: {token}}}"))
    assert "model.token: looks like a secret" in error.message
    assert token not in error.message + error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("- 1\n", "found something else"),
        ("a: [1\n", "builder.yaml:2:1: not YAML"),
        ("a:\n\tb: 1\n", "builder.yaml:2:1: not YAML"),
        ("version: 2\n", "version: expected 1; found the number 2"),
        ("a: &x [1]\nb: *x\n", "builder.yaml:2:4: YAML aliases"),
        ("? [a, b]\n: 2\n", "builder.yaml:1:3: a key must be text"),
        ("a: " + "[" * 1200 + "\n", "nested too deeply"),
        ("version: true\n", "version: expected 1; found the bool true"),
        ("version: 1.0\n", "version: expected 1; found the number 1.0"),
        ("a: !!python/object:os.system {}\n", "builder.yaml:1"),
        ("x: 1" * 400_000, "expected at most"),
    ],
)
def test_what_is_no_description_is_refused(text: str, message: str) -> None:
    assert message in refused(text).message


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "builder.yaml")
    assert "builder init" in caught.value.hint


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "builder.yaml").write_text(GOOD.replace("s3://bucket/demo", "./store"))
    loaded = load(tmp_path)
    assert loaded.store_url == str(tmp_path / "store")
    assert loaded.model_source == str(tmp_path / "model")
    assert loaded.lock_path == tmp_path / "builder.lock"


URL = "image.index.url: expected an address such as https://host:8443/path, without user and password"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  index: {url: 'https://me:pa55@h/simple'}", f"builder.yaml:10:16: {URL}"),
        ("  index: {url: 'https://pa55@h/simple'}", f"builder.yaml:10:16: {URL}"),
        ("  index: {url: 'https://me:pa55/@h/simple'}", f"builder.yaml:10:16: {URL}"),
        (
            "  index: {url: 'https://h/s', extra: ['https://pa55@h']}",
            "builder.yaml:10:39: image.index.extra[0]: expected an address",
        ),
        (
            "  index: {url: 'https://h/s', username: me, password: pa55}",
            "10:55: image.index.password: expected keys and values",
        ),
        ("  proxy: {http: 'http://me:pa55@h:3128'}", "builder.yaml:10:17: image.proxy.http: expected an address"),
        ("  proxy: {no_proxy: 'me:pa55@h'}", "builder.yaml:10:21: image.proxy.no_proxy: expected text that matches"),
    ],
)
def test_a_password_in_the_file_is_refused_without_repeating_it(line: str, message: str) -> None:
    error = refused(GOOD + line + "\n")
    assert message in error.message
    assert "pa55" not in error.message + error.hint + str(error.where)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  index: {}", "builder.yaml:10:10: image.index.url: is missing"),
        (
            "  labels: {builder.prune: none}",
            "image.labels: found builder.prune; labels of builder. are written by the build alone",
        ),
        ("  index: {url: 'https://h/s', user: me}", "image.index.user: unknown key; did you mean 'username'?"),
        ("  index: {url: 'http://h/s'}", "image.index.url: expected https://"),
        ("  index: {url: 'https://h/s', username: me}", "10:10: image.index.password: expected both username and password"),
        ("  index: {url: 'https://h/s', password: {env: P}}", "image.index.password: expected both username and password"),
        ("  index: [1]", "builder.yaml:10:10: image.index: expected true or false"),
        ("  apt: {auth: a}", "builder.yaml:10:8: image.apt.sources: is missing"),
    ],
)
def test_a_section_that_may_be_a_switch_tells_its_own_fault_alone(line: str, message: str) -> None:
    error = refused(GOOD + line + "\n")
    assert message in error.message
    assert "\n" not in error.message


def test_an_index_with_a_login_is_read() -> None:
    image = parse(
        f"{GOOD}  index: {{url: 'https://h:8443/s', username: {{env: U}}, password: {{env: P}}}}\n".encode(), "f"
    ).image
    assert image.index.model_dump() == {  # type: ignore[union-attr]
        "url": "https://h:8443/s",
        "extra": (),
        "username": {"env": "U"},
        "password": {"env": "P"},
    }
