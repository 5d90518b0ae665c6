"""What pip and apt say when they fail, as an error with its own exit code and one next step. Pure.

pip prints why an index gave nothing (401, 403, 500) only into its log, as `Could not fetch URL`; steps/wheels shows those
lines. The patterns hold for pip 23.0.1 (Debian 12) to 26.3 and apt 2.6; their output stands in the tests as it was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from builder.errors import BuilderError, IntegrityError, RemoteError

LOGIN = "check image.index.username and image.index.password, and the variables they name"
APT_LOGIN = "check the file that image.apt.auth names"
FORBIDDEN = "ask who runs the index to let this user read it"
AUTHORITY = "name the certificate authority of your network in image.ca_bundle"
BROKEN = "it is broken or busy: try later"
CUT = "it, or a proxy before it, cuts downloads short: try again"
NETWORK = (
    "let it answer here (image.build_network: host, image.proxy), or name another: image.index, image.apt, image.wheelhouse"
)
PROXY = "put the user and password into http_proxy and https_proxy of the environment, and leave out image.proxy"
WHEEL = "the wheel is on no index that pip asks here: fill image.wheelhouse, or name your index in image.index.url"
SILENT = (
    r"Connection refused|Name or service not known|Temporary failure in name resolution|No address associated with hostname"
    r"|Temporary failure resolving|Could not resolve|Network is unreachable|No route to host|[Rr]ead timed out"
    r"|[Cc]onnection timed out|Connection reset by peer|Remote end closed connection"
)
"""pip's and apt's ways to say that nothing answers, or nobody in time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """pattern: with the groups that `say` names. Patterns are tried in order, so the cause comes before what follows of it."""

    pattern: str
    error: type[BuilderError]
    say: str
    hint: str


# fmt: off
FAULTS = (
    Fault(r"DO NOT MATCH THE HASHES[^\n]*\n\s+(?P<what>\S+) from (?P<url>\S+).*?"
          r"Expected sha256 (?P<want>[0-9a-f]{64}).*?Got\s+(?P<got>[0-9a-f]{64})",
          IntegrityError, "{what}: {url} has sha256 {got}; the lock holds {want}",
          "the wheel was replaced or cut short: compare it with a copy that you trust before you lock it again"),
    Fault(r"Failed to fetch (?P<url>\S+)  (?:Hash Sum mismatch|File has unexpected size)",
          IntegrityError, "{url} is not what the mirror's own list says",
          "the mirror is between two updates, or a proxy changes what it serves: try again, then look at the proxy"),
    Fault(r"407 Proxy Authentication Required", RemoteError, "the proxy wants a login (407)", PROXY),
    Fault(r"\b401 Client Error: [^\n]*? for url: (?P<url>\S+)", RemoteError, "{url}: 401, the login is refused", LOGIN),
    Fault(r"\b403 Client Error: [^\n]*? for url: (?P<url>\S+)", RemoteError,
          "{url}: 403, this user may not read it", FORBIDDEN),
    Fault(r"\b(?P<status>5\d\d) Server Error: [^\n]*? for url: (?P<url>\S+)", RemoteError, "{url}: {status}", BROKEN),
    Fault(r"Failed to fetch (?P<url>\S+)  401 ", RemoteError, "{url}: 401, the login is refused", APT_LOGIN),
    Fault(r"Failed to fetch (?P<url>\S+)  403 ", RemoteError, "{url}: 403, this user may not read it", APT_LOGIN),
    Fault(r"Failed to fetch (?P<url>\S+)  (?P<status>5\d\d) ", RemoteError, "{url}: {status}", BROKEN),
    Fault(r"Failed to fetch (?P<url>\S+)  Undetermined Error", RemoteError, "{url}: the download stopped early", CUT),
    Fault(r"certificate verify failed: (?P<why>certificate has expired|Hostname mismatch[^(\n]*|IP address mismatch[^(\n]*)",
          RemoteError, "the index's certificate does not hold: {why}", "renew it, or ask under a name that it was made for"),
    Fault(r"certificate verify failed(?:: (?P<why>[^(\n]+?))? *\(_ssl", RemoteError,
          "the index's certificate is not trusted: {why}", AUTHORITY),
    Fault(r"Certificate verification failed: (?P<why>The certificate is NOT trusted\. [^\n]+?)\.? +Could not handshake",
          RemoteError, "the Debian mirror's certificate does not hold: {why}", AUTHORITY),
    Fault(r"host='(?P<host>[^']+)'[^\n]*too many (?P<status>\d+) error responses", RemoteError,
          "{host}: {status}, again and again", BROKEN),
    Fault(r"not enough bytes were received \((?P<how>[^)\n]+)\)\s+\S+ URL: (?P<url>\S+)", RemoteError,
          "{url}: the download stopped at {how}", CUT),
    Fault(rf"(?:host='(?P<host>[^']+)'|Failed to fetch \w+://(?P<at>[^/\s]+))[^\n]*(?P<why>{SILENT})", RemoteError,
          "{host}{at} cannot be reached: {why}", NETWORK),
    Fault(rf"(?P<why>{SILENT})", RemoteError, "the network does not answer: {why}", NETWORK),
    Fault(r"No matching distribution found for (?P<what>[^\s;]+)", BuilderError, "no wheel of {what} was found", WHEEL),
    Fault(r"E: (?:Unable to locate package (?P<what>\S+)|Package '(?P<name>[^']+)' has no installation candidate)",
          BuilderError, "no Debian package {what}{name} was found",
          "name sources of the base image's release in image.apt.sources"),
)
# fmt: on


def classify(output: str, *, step: str = "") -> BuilderError | None:
    """The error that `output` of pip or apt tells of, in one line; None where it is of no known kind.

    step: the build step that said it, as `stage 1/2: RUN ...`. User names and passwords in addresses are left out.
    """
    output = re.sub(r"[^\n]*Retrying \(Retry\(total=[1-9][^\n]*", "", output)  # the last attempt decides
    for fault in FAULTS:
        match = re.search(fault.pattern, output, re.DOTALL)
        if match:
            found = {name: value or "" for name, value in match.groupdict().items()}
            said = re.sub(r"://[^/@\s]*@", "://", fault.say.format(**found)).rstrip(": ")
            where = {"step": step} if step else None
            at = f"image build failed in step {step.partition(':')[0]}: " if step else ""
            return fault.error(at + said, hint=fault.hint, where=where)
    return None
