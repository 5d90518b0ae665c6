"""Debian's control format: paragraphs of `Field: value` lines, continued by lines that begin with a space (deb822(5))."""

from __future__ import annotations


def paragraphs(text: str) -> list[dict[str, str]]:
    """Field names in lower case; a continued value keeps its line ends.

    >>> paragraphs("Package: a\\nDepends: b,\\n c\\n\\nPackage: d\\n")
    [{'package': 'a', 'depends': 'b,\\nc'}, {'package': 'd'}]
    """
    found: list[dict[str, str]] = []
    now: dict[str, str] = {}
    last = ""
    for line in [*text.split("\n"), ""]:
        if not line.strip():
            if now:
                found.append(now)
            now, last = {}, ""
        elif line.startswith("#"):
            continue
        elif line[0] in " \t":
            if last:
                now[last] += "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            now[last] = value.strip()
    return found
