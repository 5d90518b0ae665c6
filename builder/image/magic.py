"""What a file is, by its name and first bytes: a model's weights, or a file that programs keep credentials in. Pure.

Sources: safetensors README, "Format"; llama.cpp's gguf.md; torch.serialization (zip with data.pkl; before 1.6 a pickle that
begins with its magic number); numpy.lib.format; HDF5 File Format Specification, "Superblock"; onnx.proto (ir_version is
field 1, producer_name field 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from builder.image import patterns

WEIGHTS_BYTES = 1_000_000
"""From this size on, content alone makes a file weights. Below it are test files and vocabularies."""
MAYBE_BYTES = 50_000_000
"""From this size on, a name or a format that models share with other data does."""
PACKAGE_BYTES = 16_000_000
"""Below this size a file that a Python package brings is its data, not a model: compressed_tensors ships 1.4 MB of Hadamard
matrices as safetensors."""
_PACKAGE = re.compile(r"(^|/)(site|dist)-packages/")
_NAME = re.compile(r"\.(safetensors|gguf|ggml|onnx_data)$", re.I)
_MAYBE_NAME = re.compile(
    r"\.(bin|pt|pth|ckpt|h5|hdf5|keras|onnx|ort|msgpack|npz|npy|tflite|engine|plan|pdparams|nemo|data-\d{5}-of-\d{5})$", re.I
)
_TORCH_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40](?:pytorch|onnx|tf2onnx|keras2onnx|skl2onnx|CNTK|paddle)")

CREDENTIALS = re.compile(
    r"(^|/)(\.netrc|_netrc|\.pypirc|\.git-credentials|\.pgpass|\.my\.cnf|\.boto|\.s3cfg|\.vault-token|\.htpasswd|\.dockercfg"
    r"|id_(rsa|dsa|ecdsa|ed25519)(_sk)?|\.aws/credentials|\.docker/config\.json|\.config/containers/auth\.json|\.kube/config"
    r"|\.azure/(accessTokens\.json|msal_token_cache\.(json|bin))|\.config/gh/hosts\.yml|\.config/pip/pip\.conf\.d/.+"
    r"|\.config/gcloud/(application_default_credentials\.json|credentials\.db|access_tokens\.db|legacy_credentials/.+)"
    r"|\.cargo/credentials(\.toml)?|\.gem/credentials|\.terraform\.d/credentials\.tfrc\.json|\.composer/auth\.json"
    r"|run/secrets/.+|\.cache/huggingface/(token|stored_tokens)|\.huggingface/token|\.ngc/config)$"
)
# Where an address with a password is somebody's and not documentation.
ADDRESSES = re.compile(
    r"(pip\.conf|pip\.ini|\.npmrc|\.yarnrc(\.yml)?|\.condarc|uv\.toml|/auth\.conf|auth\.conf\.d/.+|\.list|\.sources|/environment"
    r"|(^|/)\.env(\.[a-z]+)?|\.git/config|\.gitconfig|\.gitmodules|direct_url\.json|apt\.conf|apt\.conf\.d/.+"
    r"|requirements[^/]*\.txt|\.(ba|z)?sh_history)$"
)
REGISTRY = re.compile(
    r"(^|/)((\.docker|\.config/containers)/[^/]+\.json|\.dockercfg|\.dockerconfigjson|config\.json|auth\.json)$"
)
NPM = re.compile(r"npmrc$")
NETRC = re.compile(r"(^|/)([._]?netrc|auth\.conf(\.d/[^/]+)?)$")
_CODE = (".py", ".pyc", ".so", ".h", ".hpp", ".pyi", ".js", ".a", ".gz", ".html", ".css")


def settings(name: str, head: bytes) -> Iterator[patterns.Pattern]:
    """The patterns that mean a secret in a file of this name or with this head, and elsewhere mean nothing."""
    if name.endswith(_CODE):
        return
    if ADDRESSES.search(name):
        yield patterns.ADDRESS
    if REGISTRY.search(name) or b'"auths"' in head:
        yield from patterns.REGISTRY
    if NPM.search(name):
        yield patterns.NPM
    if NETRC.search(name):
        yield patterns.NETRC
    if b"current-context" in head and b"clusters" in head:
        yield patterns.KUBECONFIG


def weights(name: str, head: bytes, size: int) -> str:
    """The format of the weights that a file holds, or "" if it holds none.

    head: its first bytes, 64 KiB or all of it. size: all its bytes.
    """
    if size < PACKAGE_BYTES and _PACKAGE.search(name):
        return ""
    found = _NAME.search(name)
    if found:
        return found[1].lower()
    kind = _certain(head, size) if size >= WEIGHTS_BYTES else ""
    if kind or size < MAYBE_BYTES:
        return kind
    maybe = _MAYBE_NAME.search(name)
    return maybe[1].lower() if maybe else _likely(head)


def _certain(head: bytes, size: int) -> str:
    if _is_safetensors(head, size):
        return "safetensors"
    if head.startswith(b"GGUF") and 0 < int.from_bytes(head[4:8], "little") < 100:
        return "gguf"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "ggml"
    if head.startswith(_TORCH_PICKLE):
        return "torch pickle"
    if head.startswith(b"PK\x03\x04") and (b"/data.pkl" in head[:65536] or b"/.format_version" in head[:4096]):
        return "torch zip"
    return "onnx" if _ONNX.match(head) else ""


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes of length, then JSON of that length, in which every tensor has a dtype."""
    length = int.from_bytes(head[:8], "little")
    opens = head[8:10].strip() in (b'{"', b"{") and (b'"dtype"' in head[:65536] or b'"__metadata__"' in head[:64])
    return 2 <= length <= min(100_000_000, size - 8) and opens


def _likely(head: bytes) -> str:
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK\x03\x04") and b".npy" in head[:256]):
        return "numpy"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    return "tensorrt" if head[:4] in (b"ftrt", b"ptrt") else "tflite" if head[4:8] == b"TFL3" else ""
