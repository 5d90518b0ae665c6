"""A model on the Hugging Face hub, pinned to a commit: names, sizes and digests, in one request.

The bytes stay where they are: each file is read from the hub when it is pushed (`hub_file`), or from the cache of the hub's
own client where that has it at this commit already. Either way it carries the sha256 that the hub recorded, so that what is
pushed is what was published, and not what a broken cache or line holds.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.format.manifest import safe_path
from builder.models.hub_file import WHOLE_BYTES, HubFile, blob_id
from builder.models.hub_http import Token, library, refused
from builder.models.source import ModelFile, ModelRef, ModelSnapshot, chosen, complete, model_file
from builder.transfer import retry
from builder.transfer.source import Limits

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

SCHEME = "hf://"
FIRST = replace(retry.Policy(), tries=4, deadline_s=20.0)  # of the first request: a mistyped address should fail soon
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


def parse(source: str) -> tuple[str, str | None]:
    """`hf://org/model` or `hf://org/model@revision` -> (repository, revision).

    >>> parse("hf://org/model@v1")
    ('org/model', 'v1')
    """
    repo, _, revision = source.removeprefix(SCHEME).partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"{source}: expected hf://organisation/model", hint="copy the name from the model's page")
    return repo, revision or None


def snapshot(
    ref: ModelRef,
    *,
    token: str = "",
    endpoint: str | None = None,
    cache: Path | None = None,
    limits: Limits | None = None,
) -> ModelSnapshot:
    """The chosen files of the model; no byte of them is fetched. revision: the commit that the branch or tag meant.

    token: the hub's token; where empty, the client's own login counts.  endpoint, cache: default as the client has them.
    limits: of one request.
    Raises RemoteError: not found, gated, wrong token, unreachable; IntegrityError where the hub has another commit than
    the one asked for.
    """
    from huggingface_hub import HfApi

    repo, at = parse(ref.source)
    asked, limits = ref.revision or at, limits or Limits()
    hub = HfApi(endpoint=endpoint, token=token or None)
    info = retry.call(lambda: _info(hub, ref.source, repo, asked, limits), FIRST)
    if asked and _COMMIT.match(asked) and info.sha != asked:
        raise IntegrityError(f"{ref.source}: asked for commit {asked}, the hub answers with {info.sha}", hint="try again")

    def file(s: RepoSibling) -> ModelFile:
        found = _remote(repo, info, s, hub.endpoint, Token(token), limits)
        return _cached(found, cache) or found

    return complete(ref, SCHEME + repo, str(info.sha), [file(s) for s in info.siblings or [] if chosen(s.rfilename, ref)])


def _info(hub: Any, source: str, repo: str, revision: str | None, limits: Limits) -> ModelInfo:
    from huggingface_hub.errors import HFValidationError

    http = library()
    try:
        info: ModelInfo = hub.model_info(repo, revision=revision, files_metadata=True, timeout=limits.silence_s)
    except HFValidationError as exc:
        raise ConfigError(f"{source}: {exc}") from exc
    except (http.HTTPError, http.InvalidURL, OSError) as exc:
        raise refused(exc, source=source, revision=revision) from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:  # a portal's login page, or half an answer
        raise _no_model(source, type(exc).__name__) from exc
    if not _COMMIT.match(str(info.sha)):
        raise _no_model(source, f"commit {info.sha!r}")
    return info


def _no_model(source: str, what: str) -> RemoteError:
    return RemoteError(f"{source}: the answer describes no model: {what}", hint="check HF_ENDPOINT and the proxy settings")


def _remote(repo: str, info: ModelInfo, sibling: RepoSibling, endpoint: str, token: Token, limits: Limits) -> HubFile:
    name, size = sibling.rfilename, sibling.size
    try:
        safe_path(name)
        name.encode()
    except (ValueError, UnicodeEncodeError) as exc:
        raise ConfigError(f"{SCHEME}{repo}: {name!r} cannot be part of a model: {exc}", hint="exclude it") from exc
    if not isinstance(size, int) or size < 0:
        raise _no_model(SCHEME + repo, f"no size of {name}")
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    return HubFile(name, size, sha256, sibling.blob_id or "", repo, str(info.sha), endpoint, token, limits)


def _cached(file: HubFile, cache: Path | None) -> ModelFile | None:
    """The same file in the client's cache; None where it is not there, or not whole.

    A file of git's is compared with its blob id; the push compares the others with their sha256.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.path, cache_dir=cache, revision=file.commit)
    if not isinstance(found, str):
        return None
    local = model_file(file.path, Path(found), sha256=file.sha256)
    if local.size != file.size:
        return None
    if not file.sha256 and file.size <= WHOLE_BYTES and blob_id(local.location.read_bytes()) != file.blob_id:
        return None
    return local
