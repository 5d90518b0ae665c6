"""Several images for one disk."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from builder.errors import ConfigError
from builder.node.images import open_images
from builder.node.inputs import ImageInput
from builder.node.layout import host_platform
from tests import oci

OTHER = "s390x"


def test_images_for_two_platforms_are_refused_with_both_names(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "a", name="r.example.com/a:1")
    oci.write_layout(tmp_path / "b", name="r.example.com/b:1", arch=OTHER)
    inputs = (ImageInput(tmp_path / "a"), ImageInput(tmp_path / "b"))
    for platform in ("", f"linux/{OTHER}"):
        with ExitStack() as stack, pytest.raises(ConfigError) as caught:
            open_images(stack, inputs, platform)
        assert f"one disk serves one platform, {platform or host_platform()} here" in caught.value.message
        assert f"r.example.com/a:1: {host_platform()}" in caught.value.message
        assert f"r.example.com/b:1: linux/{OTHER}" in caught.value.message
        assert "--platform" in caught.value.hint


def test_an_image_for_another_machine_needs_its_platform_said(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "a", arch=OTHER)
    with ExitStack() as stack:
        with pytest.raises(ConfigError, match=f"is for linux/{OTHER}, expected {host_platform()}") as caught:
            open_images(stack, [ImageInput(tmp_path / "a")])
        assert caught.value.hint.endswith(f"--platform linux/{OTHER}")
        (one,) = open_images(stack, [ImageInput(tmp_path / "a")], f"linux/{OTHER}")
        assert one.image.platform == f"linux/{OTHER}"


def test_one_name_for_two_images_is_refused(tmp_path: Path) -> None:
    oci.write_layout(tmp_path / "a")
    oci.write_layout(tmp_path / "b", extra=b"other")
    inputs = [ImageInput(tmp_path / "a", "acme/x:1"), ImageInput(tmp_path / "b", "docker.io/acme/x:1")]
    with ExitStack() as stack, pytest.raises(ConfigError, match=r"docker\.io/acme/x:1: named twice"):
        open_images(stack, inputs)
