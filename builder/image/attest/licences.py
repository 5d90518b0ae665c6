"""Licences as packages declare them, in SPDX's words where those words exist, else as they stand.

Sources: core metadata (PEP 639) for wheels; Debian's machine-readable copyright format 1.0 (DEP-5) for packages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cyclonedx.spdx import fixup_id, is_expression

from builder.image.attest.paragraphs import paragraphs

CLASSIFIER = "License :: OSI Approved :: "
# Classifiers that leave no choice of version (the trove classifiers); the others stand by their name.
CLASSIFIERS = {
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "zlib/libpng License": "Zlib",
}
# Debian's short names that are not SPDX's (copyright-format 1.0, "Short name"); case does not count.
DEBIAN = {"expat": "MIT", "psf-2": "PSF-2.0", "python-2.0": "Python-2.0", "apache-2": "Apache-2.0", "cc0": "CC0-1.0"}
GNU = re.compile(r"(A?GPL|LGPL|GFDL)-(\d+)(?:\.(\d+))?(\+?)")
LONGEST = 100
"""Characters; the License field of older metadata may hold a whole licence text."""


def of_metadata(expression: str, licence: str, classifiers: Sequence[str]) -> str:
    """License-Expression, else License where it is a name and not a text, else the classifiers; "" where none says it."""
    if expression.strip():
        return spdx(expression.strip())
    licence = licence.strip()
    if licence and licence.upper() != "UNKNOWN" and len(licence) <= LONGEST and "\n" not in licence:
        return spdx(licence)
    names = [one.removeprefix(CLASSIFIER) for one in classifiers if one.startswith(CLASSIFIER)]
    found = [CLASSIFIERS.get(name, name) for name in names]
    return " OR ".join(found) if all(name in CLASSIFIERS for name in names) else ", ".join(found)


def of_copyright(text: str) -> str:
    """The licence of the package as a whole: the header's, else that of the first Files paragraph; "" if not DEP-5.

    Files under other licences are not looked at.
    """
    found = paragraphs(text)
    if not found or "copyright-format" not in found[0].get("format", ""):
        return ""
    bodies = [one for one in found[1:] if "files" in one]
    for one in (found[0], *bodies[:1]):
        name = one.get("license", "").split("\n")[0].strip()
        if name:
            return debian(name)
    return ""


def debian(name: str) -> str:
    """Debian's short names, with its `or`, `and` and `with`, as an SPDX expression; unchanged where a part is unknown.

    >>> debian("GPL-2+ or Expat"), debian("BSD-3-clause and public-domain")
    ('GPL-2.0-or-later OR MIT', 'BSD-3-clause and public-domain')
    """
    parts = re.split(r"(,? (?:or|and) )", name)
    words = [_short(part) if index % 2 == 0 else part.strip(" ,").upper() for index, part in enumerate(parts)]
    if not all(words) or len({word for word in words if word in ("AND", "OR")}) > 1:  # and, or: without brackets not clear
        return name
    return " ".join(words)


def spdx(name: str) -> str:
    """`name` with SPDX's spelling where it is an identifier or an expression, else as it stands."""
    return fixup_id(name) or name


def is_spdx(name: str) -> bool:
    return fixup_id(name) is not None or is_expression(name)


def _short(name: str) -> str:
    """SPDX identifier of one of Debian's short names; "" if it is none."""
    name = name.strip()
    gnu = GNU.fullmatch(name)
    if gnu:
        name = f"{gnu[1]}-{gnu[2]}.{gnu[3] or 0}-{'or-later' if gnu[4] else 'only'}"
    return fixup_id(DEBIAN.get(name.lower(), name)) or ""
