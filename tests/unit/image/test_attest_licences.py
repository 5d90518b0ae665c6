"""Licences come out in SPDX's words only where the words are sure."""

from __future__ import annotations

import pytest

from builder.image.attest.licences import debian, is_spdx, of_copyright, of_metadata

HEAD = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("Expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("GPL-2+ or BSD-3-clause", "GPL-2.0-or-later OR BSD-3-Clause"),
        ("GPL-2+, and Expat", "GPL-2.0-or-later AND MIT"),
        ("GPL-2+ or Expat and ISC", "GPL-2+ or Expat and ISC"),  # which binds closer is not said
        ("GPL-2+ with OpenSSL exception", "GPL-2+ with OpenSSL exception"),
        ("public-domain", "public-domain"),
        ("GPL-1+ or Artistic", "GPL-1+ or Artistic"),
    ],
)
def test_debians_short_names(name: str, said: str) -> None:
    assert debian(name) == said
    assert is_spdx(said) == (said != name)


@pytest.mark.parametrize(
    ("expression", "licence", "classifiers", "said"),
    [
        ("Apache-2.0 OR MIT", "ignored", ["License :: OSI Approved :: MIT License"], "Apache-2.0 OR MIT"),
        ("", "mit", [], "MIT"),
        ("", "BSD", ["License :: OSI Approved :: BSD License"], "BSD"),
        ("", "UNKNOWN", ["License :: OSI Approved :: MIT License"], "MIT"),
        ("", "Copyright (c) 2020\n\nPermission is hereby granted", ["License :: OSI Approved :: MIT License"], "MIT"),
        ("", "x" * 200, [], ""),
        ("", "", ["License :: OSI Approved :: BSD License"], "BSD License"),  # two, three or four clauses: it does not say
        ("", "", ["Topic :: Software Development", "License :: OSI Approved :: MIT License"], "MIT"),
        ("", "", [], ""),
    ],
)
def test_metadata(expression: str, licence: str, classifiers: list[str], said: str) -> None:
    assert of_metadata(expression, licence, classifiers) == said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (HEAD + "License: GPL-3+\n\nFiles: *\nLicense: Expat\n", "GPL-3.0-or-later"),
        (HEAD + "\nFiles: *\nCopyright: x\nLicense: Expat\n\nFiles: debian/*\nLicense: GPL-2\n", "MIT"),
        (HEAD + "\nLicense: GPL-2\n text\n", ""),  # a licence's text alone says nothing about the files
        ("This package was debianized by hand.\nLicense: MIT\n", ""),
        ("", ""),
    ],
)
def test_copyright_files(body: str, said: str) -> None:
    assert of_copyright(body) == said
