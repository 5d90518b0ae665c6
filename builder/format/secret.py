"""What looks like a secret in a setting, so that it is not written down. Pure.

A secret is known by the name before it, whole words only (a token is one, max-num-batched-tokens is a number), or by its own
form. Nothing here finds a password that stands alone. What was hidden once stays as it is when it is hidden again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LOOK = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{20,})\b")
HIDDEN = "***"
_USERINFO = re.compile(r"://[^/@\s]+@")
# In lower case, `_` between and around the words. A cache key and "per token" (SGLANG_PER_TOKEN_GROUP_QUANT) are no secrets.
_NAME = re.compile(
    r"_(passw(or)?d|passphrase|pwd|secrets?|credentials?|auth(orization)?|signature|apikeys?|accesskey)_"
    r"|(?<!_cache)_keys?_|(?<!_per)_(token|sig)_$"
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_PAIR = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]+)\\?["']?\s*[:=]\s*""")
_VALUE = re.compile(
    r"""\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}"""
    r"""|(?:true|false|null|[0-9.]+)(?=[\s,}\]]|$)|(?:(?i:bearer|basic|token)\s+)?[^\s;&|]+"""
)


def is_name(name: str) -> bool:
    """Whether the value of this variable, argument or JSON key is a secret.

    >>> [is_name(n) for n in ("--hf-token", "API_KEY", "authToken", "--max-num-batched-tokens", "--tokenizer-mode", "LOGIN")]
    [True, True, True, False, False, False]
    """
    return bool(_NAME.search(f"_{_WORDS.sub('_', name).lower()}_".replace("__", "_")))


def masked(text: str) -> str:
    """The text without its secrets: `name=value` and `"name": value` anywhere in it, a URL's user, tokens of known form.

    >>> masked("export HF_TOKEN='a b'; serve --tp 2 --proxy http://me:pw@host")
    'export HF_TOKEN=***; serve --tp 2 --proxy http://***@host'
    """
    text = _USERINFO.sub(f"://{HIDDEN}@", LOOK.sub(HIDDEN, text))
    out, at = [], 0
    for pair in _PAIR.finditer(text):
        value = _VALUE.match(text, pair.end()) if pair.start() >= at and is_name(pair["name"]) else None
        if value:
            out += [text[at : pair.end()], HIDDEN]
            at = value.end()
    return "".join([*out, text[at:]])


def hidden(args: Sequence[str]) -> list[str]:
    """The arguments of a command without their secrets. What follows `--api-key` is hidden up to the next argument with a dash.

    >>> hidden(["--hf-token", "abc", "--tp", "2", "--password=x y", "--api-key", "a", "b", "--max-num-seqs", "8"])
    ['--hf-token', '***', '--tp', '2', '--password=***', '--api-key', '***', '***', '--max-num-seqs', '8']
    """
    out, hide = [], False
    for arg in args:
        name, equals, _ = arg.partition("=")
        dash = arg.startswith("-")
        secret = bool(re.fullmatch(r"[\w.-]+", name)) and is_name(name)
        hide = hide and not dash
        whole = secret and equals and (dash or " " not in arg)  # else a script that begins with it: `API_KEY=x serve --tp 2`
        out.append(HIDDEN if hide else f"{name}={HIDDEN}" if whole else masked(arg))
        hide = hide or (secret and dash and not equals)
    return out
