"""Each rule: one file that breaks it, and one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import ConfigError
from builder.node.lint import lint

NODE = """
apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata: {name: gpu}
spec:
  amiSelectorTerms: [{alias: bottlerocket@v1.62.0}]
  blockDeviceMappings:
  - deviceName: /dev/xvdb
    ebs: {snapshotID: snap-1, volumeSize: 120Gi, volumeInitializationRate: 300}
"""
POD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: llm}
spec:
  template:
    spec:
      containers:
      - {name: server, image: "registry.example.com/llm@sha256:aa"}
"""


def rules(tmp_path: Path, text: str, *, name: str = "a.yaml", disk_bytes: int = 0) -> list[tuple[str, str]]:
    (tmp_path / name).write_text(text)
    return [(f.rule, f.severity) for f in lint([tmp_path], disk_bytes=disk_bytes)]


def test_sound_files_have_no_findings(tmp_path: Path) -> None:
    assert rules(tmp_path, NODE + "---" + POD, disk_bytes=120 << 30) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("spec:", "spec:\n  instanceStorePolicy: RAID0", ("raid0", "error")),
        ("v1.62.0", "latest", ("ami-latest", "warning")),
        ("300", "301", ("init-rate", "error")),
        ("snapshotID: snap-1, ", "", ("init-rate", "error")),
        (", volumeInitializationRate: 300", "", ("init-rate", "warning")),
        ("volumeSize: 120Gi", "volumeSize: 119Gi", ("volume-size", "error")),
        ("volumeSize: 120Gi", "volumeSize: 120G", ("volume-size", "error")),
        ("volumeSize: 120Gi", "encrypted: true, volumeSize: 120Gi", ("encrypted", "warning")),
        ("spec:", 'spec:\n  userData: "[settings.container-runtime]\\nsnapshotter = \\"soci\\""', ("soci", "error")),
        ("spec:", "spec:\n  userData: '#!/bin/sh'", None),  # a TOML comment
        ("spec:", "spec:\n  userData: 'MIME-Version: 1.0'", ("unreadable", "error")),
    ],
)
def test_node_classes(tmp_path: Path, old: str, new: str, expected: tuple[str, str] | None) -> None:
    assert NODE.replace(old, new) != NODE
    assert rules(tmp_path, NODE.replace(old, new), disk_bytes=120 << 30) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ("image: a/b@sha256:aa, imagePullPolicy: Always", [("pull-always", "error")]),
        ("image: a/b@sha256:aa, imagePullPolicy: Never", []),
        ("image: 'a/b:latest'", [("tag-latest", "error"), ("no-digest", "warning")]),
        ("image: a/b", [("tag-latest", "error"), ("no-digest", "warning")]),
        ("image: 'registry:5000/b'", [("tag-latest", "error"), ("no-digest", "warning")]),
        ("image: 'a/b:latest', imagePullPolicy: IfNotPresent", [("no-digest", "warning")]),
        ("image: 'a/b:v1'", [("no-digest", "warning")]),
        ("image: 'a/b:v1@sha256:aa'", []),
    ],
)
def test_pods(tmp_path: Path, container: str, expected: list[tuple[str, str]]) -> None:
    text = POD.replace('image: "registry.example.com/llm@sha256:aa"', container)
    assert rules(tmp_path, text) == expected


@pytest.mark.parametrize("kind", ["Pod", "CronJob", "Job", "DaemonSet", "List"])
def test_pods_are_found_in_every_kind(tmp_path: Path, kind: str) -> None:
    pod = "{containers: [{name: a, image: x, imagePullPolicy: Always}]}"
    inside = {
        "Pod": f"spec: {pod}",
        "CronJob": f"spec: {{jobTemplate: {{spec: {{template: {{spec: {pod}}}}}}}}}",
        "List": f"items: [{{kind: Pod, spec: {pod}}}]",
    }.get(kind, f"spec: {{template: {{spec: {pod}}}}}")
    assert ("pull-always", "error") in rules(tmp_path, f"kind: {kind}\n{inside}\n")


def test_user_data_files(tmp_path: Path) -> None:
    assert rules(tmp_path, '[settings.container-runtime]\nsnapshotter = "soci"', name="u.toml") == [("soci", "error")]
    assert rules(tmp_path, '[settings.container-runtime]\nsnapshotter = "overlayfs"', name="u.toml") == []
    assert rules(tmp_path, "settings =", name="u.toml") == [("unreadable", "error")]


@pytest.mark.parametrize("text", ["", "[]", "null", "kind: Pod", "kind: Pod\nspec: 3", "spec: {template: []}", "a: [", "1"])
def test_odd_files_do_not_break_it(tmp_path: Path, text: str) -> None:
    assert all(rule == "unreadable" for rule, _ in rules(tmp_path, text))


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        lint([tmp_path / "nowhere"])
