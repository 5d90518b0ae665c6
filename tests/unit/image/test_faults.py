"""What pip 23.0.1, pip 26.3 and apt 2.6.1 really said in a build, as errors. Ports and names of files are shortened."""

# ruff: noqa: E501, RUF001  (the lines are as pip and apt print them)
from __future__ import annotations

import pytest

from builder.errors import BuilderError, IntegrityError, RemoteError
from builder.image.faults import classify

NONE = """
  ERROR: Could not find a version that satisfies the requirement awscrt==0.38.1 (from versions: none)
  ERROR: No matching distribution found for awscrt==0.38.1
"""
PIP_401 = f"""{NONE}  Could not fetch URL https://127.0.0.1:8443/simple/awscrt/: 401 Client Error: Unauthorized for url: \
https://127.0.0.1:8443/simple/awscrt/ - skipping
"""
PIP_403 = f"""{NONE}  Could not fetch URL https://127.0.0.1:8443/simple/awscrt/: 403 Client Error: Forbidden for url: \
https://127.0.0.1:8443/simple/awscrt/ - skipping
"""
PIP_403_FILE = """
  ERROR: HTTP error 403 while getting https://127.0.0.1:8443/files/awscrt.whl (from https://127.0.0.1:8443/simple/awscrt/)
  ERROR: Could not install requirement awscrt==0.38.1 from https://127.0.0.1:8443/files/awscrt.whl (from -r \
/requirements/runtime.txt (line 1)) because of HTTP error 403 Client Error: Forbidden for url: \
https://127.0.0.1:8443/files/awscrt.whl for URL https://127.0.0.1:8443/files/awscrt.whl (from https://127.0.0.1:8443/simple/awscrt/)
"""
PIP_500 = f"""{NONE}  Could not fetch URL https://127.0.0.1:8443/simple/awscrt/: HTTPSConnectionPool(host='127.0.0.1', port=8443): \
Max retries exceeded with url: /simple/awscrt/ (Caused by ResponseError('too many 500 error responses')) - skipping
"""
PIP_500_FILE = """
  ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='127.0.0.1', port=8443): Max retries exceeded \
with url: /files/awscrt.whl (Caused by ResponseError('too many 500 error responses'))
"""
PIP_WRONG = f"""
  ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, please \
update the hashes. Otherwise, examine the package contents carefully; someone may have tampered with them.
      awscrt==0.38.1 from https://127.0.0.1:8443/files/awscrt.whl (from -r /requirements/runtime.txt (line 1)):
          Expected sha256 {"a" * 64}
          Expected     or {"b" * 64}
               Got        {"c" * 64}
"""
RETRYING = (
    "  WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by"
)
PIP_CA_23 = f"""
{RETRYING} 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get \
local issuer certificate (_ssl.c:1006)'))': /simple/awscrt/
  Could not fetch URL https://127.0.0.1:8443/simple/awscrt/: There was a problem confirming the ssl certificate: \
HTTPSConnectionPool(host='127.0.0.1', port=8443): Max retries exceeded with url: /simple/awscrt/ (Caused by SSLError(\
SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate \
(_ssl.c:1006)'))) - skipping{NONE}"""
PIP_CA_26 = f"""
{RETRYING} 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get \
local issuer certificate (_ssl.c:1006)'))': /simple/awscrt/
  Could not fetch URL https://127.0.0.1:8443/simple/awscrt/: There was a problem confirming the ssl certificate: [SSL: \
CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate (_ssl.c:1006) - skipping{NONE}"""
PIP_REFUSED_23 = f"""
{RETRYING} 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f5b0e61cf90>: Failed to establish a \
new connection: [Errno 111] Connection refused')': /simple/awscrt/{NONE}  Could not fetch URL \
https://127.0.0.1:9/simple/awscrt/: connection error: HTTPSConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with \
url: /simple/awscrt/ (Caused by NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f5b0e61dd90>: \
Failed to establish a new connection: [Errno 111] Connection refused')) - skipping
"""
PIP_RESOLVE_26 = f"""
{RETRYING} 'NameResolutionError("HTTPSConnection(host='packages.invalid', port=443): Failed to resolve 'packages.invalid' ([Errno \
-2] Name or service not known)")': /simple/awscrt/{NONE}"""
PIP_TIMEOUT_26 = f"""
{RETRYING} 'ReadTimeoutError("HTTPSConnectionPool(host='127.0.0.1', port=8443): Read timed out. (read timeout=3.0)")': /files/a.whl
  error: connection-timeout
  × Unable to fetch https://127.0.0.1:8443/files/awscrt.whl
  ╰─> 127.0.0.1 didn't respond within 3.0 seconds
  hint: This is probably a temporary issue with the remote server or the network connection.
"""
PIP_SHORT_26 = """
    WARNING: Connection interrupted while downloading.
  error: incomplete-download
  × Download failed after 6 attempts because not enough bytes were received (2.2 MB/4.4 MB)
  ╰─> URL: https://127.0.0.1:8443/files/awscrt.whl
  note: This is an issue with network connectivity, not pip.
"""
APT_IGNORED = "\n  E: Some index files failed to download. They have been ignored, or old ones used instead.\n"
APT_401 = f"  E: Failed to fetch https://127.0.0.1:8443/apt/./Packages  401  Unauthorized [IP: 127.0.0.1 8443]{APT_IGNORED}"
APT_403 = "  E: Failed to fetch https://127.0.0.1:8443/apt/./libgomp1.deb  403  Forbidden [IP: 127.0.0.1 8443]\n"
APT_500 = "  E: Failed to fetch https://127.0.0.1:8443/apt/./libgomp1.deb  500  Internal Server Error [IP: 127.0.0.1 8443]\n"
APT_CA = (
    "  E: Failed to fetch https://127.0.0.1:8443/apt/./InRelease  Certificate verification failed: The certificate is NOT trusted. "
    "The certificate issuer is unknown.  Could not handshake: Error in the certificate verification. [IP: 127.0.0.1 8443]"
    f"{APT_IGNORED}"
)
APT_WRONG = """
  E: Failed to fetch https://127.0.0.1:8443/apt/./libgomp1.deb  Hash Sum mismatch
     Hashes of expected file:
      - SHA256:48fec46bda7f5b1638b9e959889bfbc20491247d402d120bb152687eb48143d7
"""
APT_SHORT = "  E: Failed to fetch https://127.0.0.1:8443/apt/./libgomp1.deb  Undetermined Error [IP: 127.0.0.1 8443]\n"
APT_REFUSED = (
    "  E: Failed to fetch https://127.0.0.1:9/apt/./InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: "
    f"Connection refused){APT_IGNORED}"
)
APT_RESOLVE = f"  E: Failed to fetch https://packages.invalid/apt/./InRelease  Temporary failure resolving 'packages.invalid'{APT_IGNORED}"
APT_PROXY = (
    "  E: Failed to fetch https://127.0.0.1:8443/apt/./InRelease  Invalid response from proxy: HTTP/1.1 407 Proxy Authentication "
    f"Required  Proxy-Authenticate: Basic  Content-Length: 0     [IP: 127.0.0.1 35179]{APT_IGNORED}"
)
APT_NONE = "  E: Unable to locate package libgomp1\n"
PAGE, FILE, DEB = (
    "https://127.0.0.1:8443/simple/awscrt/",
    "https://127.0.0.1:8443/files/awscrt.whl",
    "https://127.0.0.1:8443/apt/./",
)


@pytest.mark.parametrize(
    ("output", "kind", "message", "hint"),
    [
        (PIP_401, RemoteError, f"{PAGE}: 401, the login is refused", "image.index.password"),
        (PIP_403, RemoteError, f"{PAGE}: 403, this user may not read it", "ask who runs the index"),
        (PIP_403_FILE, RemoteError, f"{FILE}: 403, this user may not read it", "ask who runs the index"),
        (PIP_500, RemoteError, "127.0.0.1: 500, again and again", "try later"),
        (PIP_500_FILE, RemoteError, "127.0.0.1: 500, again and again", "try later"),
        (PIP_WRONG, IntegrityError, f"awscrt==0.38.1: {FILE} has sha256 {'c' * 64}; the lock holds {'a' * 64}", "replaced"),
        (PIP_CA_23, RemoteError, "not trusted: unable to get local issuer certificate", "image.ca_bundle"),
        (PIP_CA_26, RemoteError, "not trusted: unable to get local issuer certificate", "image.ca_bundle"),
        (PIP_REFUSED_23, RemoteError, "127.0.0.1 cannot be reached: Connection refused", "image.wheelhouse"),
        (PIP_RESOLVE_26, RemoteError, "packages.invalid cannot be reached: Name or service not known", "image.index"),
        (PIP_TIMEOUT_26, RemoteError, "127.0.0.1 cannot be reached: Read timed out", "image.index"),
        (PIP_SHORT_26, RemoteError, f"{FILE}: the download stopped at 2.2 MB/4.4 MB", "try again"),
        (NONE, BuilderError, "no wheel of awscrt==0.38.1 was found", "image.wheelhouse"),
        (APT_401, RemoteError, f"{DEB}Packages: 401, the login is refused", "image.apt.auth"),
        (APT_403, RemoteError, f"{DEB}libgomp1.deb: 403, this user may not read it", "image.apt.auth"),
        (APT_500, RemoteError, f"{DEB}libgomp1.deb: 500", "try later"),
        (APT_CA, RemoteError, "The certificate is NOT trusted. The certificate issuer is unknown", "image.ca_bundle"),
        (APT_WRONG, IntegrityError, f"{DEB}libgomp1.deb is not what the mirror's own list says", "try again"),
        (APT_SHORT, RemoteError, f"{DEB}libgomp1.deb: the download stopped early", "try again"),
        (APT_REFUSED, RemoteError, "127.0.0.1:9 cannot be reached: Connection refused", "image.apt"),
        (APT_RESOLVE, RemoteError, "packages.invalid cannot be reached: Temporary failure resolving", "image.apt"),
        (APT_PROXY, RemoteError, "the proxy wants a login (407)", "of the environment"),
        (APT_NONE, BuilderError, "no Debian package libgomp1 was found", "image.apt.sources"),
    ],
)
def test_what_was_said_becomes_one_error(output: str, kind: type[BuilderError], message: str, hint: str) -> None:
    error = classify(output, step="wheels 2/3: RUN sh /steps/wheels")
    assert error is not None
    assert type(error) is kind
    assert error.message.startswith("image build failed in step wheels 2/3: ")
    assert error.message.endswith(message)
    assert "\n" not in error.message
    assert hint in error.hint
    assert error.where == {"step": "wheels 2/3: RUN sh /steps/wheels"}


def test_a_retry_that_helped_is_not_the_cause() -> None:
    error = classify(RETRYING.replace("total=0", "total=4") + " 'ConnectTimeoutError(... Connection timed out)'\n" + NONE)
    assert error is not None
    assert error.message == "no wheel of awscrt==0.38.1 was found"


def test_a_login_in_an_address_is_not_repeated() -> None:
    error = classify(PIP_401.replace("https://127", "https://robot:p4ss@127"))
    assert error is not None
    assert error.message == f"{PAGE}: 401, the login is refused"


def test_a_step_that_fails_otherwise_is_left_to_others() -> None:
    assert classify("smoke: python -m builder.runtime --help exited 1") is None
