"""What images and wheels are called: references, and package URLs (package-url/purl-spec, types oci and pypi)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packageurl import PackageURL

from builder.errors import ConfigError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    """repository: with its registry, where it names one. tag, digest (sha256:...): "" where not known."""

    repository: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full, as Docker reads a short one; "" where there is none."""
        first, slash, _ = self.repository.partition("/")
        if not self.repository or (slash and ("." in first or ":" in first or first == "localhost")):
            return self.repository
        return f"docker.io/{self.repository}" if slash else f"docker.io/library/{self.repository}"

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(reference: str) -> Image:
    """`registry:port/path/name:tag@digest`, the last two as far as they are there.

    >>> parse("localhost:5000/llm/tiny:v1")
    Image(repository='localhost:5000/llm/tiny', tag='v1', digest='')
    """
    name, _, digest = reference.partition("@")
    if digest and not DIGEST.fullmatch(digest):
        raise ConfigError(f"{reference}: expected sha256: and 64 hex digits after @, found {digest[:80]!r}")
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return Image(folder + slash + last, tag, digest)


def image_purl(image: Image, *, arch: str = "", title: str = "image") -> PackageURL:
    """image.digest must be known: it is the version. title: what it is called if it lies in no repository."""
    qualifiers = {"arch": arch, "repository_url": image.name, "tag": image.tag}
    given = {name: value for name, value in qualifiers.items() if value}
    return PackageURL("oci", name=image.name.rpartition("/")[2] or title, version=image.digest, qualifiers=given)


def pypi_purl(name: str, version: str) -> PackageURL:
    return PackageURL("pypi", name=name, version=version)
