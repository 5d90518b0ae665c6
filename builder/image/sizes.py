"""How large wheels are: as their index says, else by asking the server of each. Sizes decide the layers of an image."""

from __future__ import annotations

import base64
import concurrent.futures
import netrc
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from builder.errors import RemoteError

READERS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """A wheel as an index offers it."""

    name: str
    version: str
    sha256: str
    url: str
    size: int = 0


def of(found: Sequence[Found], environ: Mapping[str, str]) -> dict[str, int]:
    """Bytes of each wheel by URL: as the index says, else by asking for the file's header: sizes decide the layers."""
    ask = Web(environ)
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        return dict(zip([one.url for one in found], pool.map(lambda one: one.size or ask.size(one), found), strict=True))


class Web:
    """Requests by the proxies, authorities and logins that the resolver uses."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        told = {
            kind: environ.get(f"{kind}_proxy") or environ.get(f"{kind.upper()}_PROXY", "") for kind in ("http", "https", "no")
        }
        self.proxies = {kind: value for kind, value in told.items() if value}
        self.logins = _logins(environ)
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=environ.get("SSL_CERT_FILE") or None))
        through = urllib.request.ProxyHandler({kind: url for kind, url in self.proxies.items() if kind != "no"})
        self.direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
        self.proxied = urllib.request.build_opener(through, secure)

    def size(self, one: Found) -> int:
        """Raises RemoteError where the server does not tell."""
        parts = urlsplit(one.url)
        host = parts.hostname or ""
        try:
            if parts.scheme == "file":
                return Path(unquote(parts.path)).stat().st_size
            near = urllib.request.proxy_bypass_environment(host, self.proxies)  # type: ignore[attr-defined]
            opener, why = self.direct if near else self.proxied, ""
            for method in ("HEAD", "GET"):  # some indexes know no HEAD; of a GET only the header is read
                request = urllib.request.Request(one.url, method=method)
                if login := self.logins.get(
                    host
                ):  # for this host alone: where it redirects to, another company perhaps, gets none
                    request.add_unredirected_header("Authorization", login)
                try:
                    with opener.open(request, timeout=30) as answer:
                        if size := int(answer.headers.get("Content-Length") or 0):
                            return size
                except urllib.error.HTTPError as exc:
                    why = f": {exc.code} {exc.reason}"
        except (OSError, ValueError) as exc:
            why = f": {exc}"
        raise RemoteError(
            f"{one.name}=={one.version}: {host} does not tell the wheel's size{why}",
            hint="try again; sizes decide the layers of an image, so a lock needs them",
        )


def _logins(environ: Mapping[str, str]) -> dict[str, str]:
    """Host to the value of an Authorization header, of the netrc file that $NETRC names."""
    path = environ.get("NETRC", "")
    try:
        hosts = netrc.netrc(path).hosts if path else {}
    except (OSError, netrc.NetrcParseError):
        return {}
    return {host: "Basic " + base64.b64encode(f"{told[0]}:{told[2]}".encode()).decode() for host, told in hosts.items()}
