"""A model on the Hugging Face hub, pinned to a commit, downloaded into the hub's own cache.

The hub's client resumes and caches; here each LFS file carries the sha256 that the hub recorded, so that what is pushed is
what was published, and not what a broken cache holds.
"""

from __future__ import annotations

import errno
import glob
from pathlib import Path
from typing import TYPE_CHECKING, cast

from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError
from builder.models.source import ModelFile, ModelRef, ModelSnapshot, chosen, complete, model_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SCHEME = "hf://"


def parse(source: str) -> tuple[str, str | None]:
    """`hf://org/model` or `hf://org/model@revision` -> (repository, revision).

    >>> parse("hf://org/model@v1")
    ('org/model', 'v1')
    """
    repo, _, revision = source.removeprefix(SCHEME).partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"{source}: expected hf://organisation/model", hint="copy the name from the model's page")
    return repo, revision or None


def snapshot(ref: ModelRef, *, token: str = "", endpoint: str | None = None, cache: Path | None = None) -> ModelSnapshot:
    """The chosen files of the model, on this machine. revision: the commit that the branch or tag meant.

    token: the hub's token; where empty, huggingface_hub's own login counts.
    Raises RemoteError: not found, gated, wrong token, unreachable. CapabilityError: disk full.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, at = parse(ref.source)
    # The base error of the client's HTTP library, which is httpx or its successor, by version.
    transport = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        info = HfApi(endpoint=endpoint, token=token or None).model_info(repo, revision=ref.revision or at, files_metadata=True)
        names = [s.rfilename for s in info.siblings or [] if chosen(s.rfilename, ref)]
        if not names:
            return complete(ref, SCHEME + repo, info.sha or "", [])
        root = snapshot_download(repo, revision=info.sha, allow_patterns=[glob.escape(n) for n in names], token=token or None,
                                 endpoint=endpoint, cache_dir=cache)  # fmt: skip
    except HFValidationError as exc:
        raise ConfigError(f"{ref.source}: {exc}") from exc
    except (transport, LocalEntryNotFoundError) as exc:
        raise _refused(ref, exc) from exc
    except OSError as exc:  # the client's connection errors, and the disk's
        raise _failed(ref, exc) from exc
    return complete(ref, SCHEME + repo, info.sha or "", _files(Path(root), info, names))


def listing(ref: ModelRef, *, token: str = "", endpoint: str | None = None) -> list[tuple[str, int]]:
    """(path, bytes) of the chosen files, without downloading any. Raises as `snapshot` does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, at = parse(ref.source)
    transport = cast(type[Exception], HfHubHTTPError.__mro__[1])  # see snapshot
    try:
        info = HfApi(endpoint=endpoint, token=token or None).model_info(repo, revision=ref.revision or at, files_metadata=True)
    except HFValidationError as exc:
        raise ConfigError(f"{ref.source}: {exc}") from exc
    except transport as exc:
        raise _refused(ref, exc) from exc
    except OSError as exc:
        raise _failed(ref, exc) from exc
    return [(s.rfilename, s.size or 0) for s in info.siblings or [] if chosen(s.rfilename, ref)]


def _files(root: Path, info: ModelInfo, names: list[str]) -> list[ModelFile]:
    digests = {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs}
    return [model_file(name, root / name, sha256=digests.get(name, "")) for name in names]


def _refused(ref: ModelRef, exc: Exception) -> RemoteError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(exc, "response", None), "status_code", 0)
    if isinstance(exc, GatedRepoError):
        return RemoteError(f"{ref.source}: access is gated", hint="accept its terms on the model's page, then set model.token")
    if isinstance(exc, RevisionNotFoundError):
        asked = ref.revision or parse(ref.source)[1]
        return RemoteError(f"{ref.source}: no revision {asked!r}", hint="check the branch, tag or commit")
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403):
        return RemoteError(f"{ref.source}: not found, or private", hint="check the name; for a private model set model.token")
    said = "".join(str(exc).strip().splitlines()[:1])
    if status:
        return RemoteError(f"{ref.source}: the hub answered {status}: {said}", hint="try again")
    return RemoteError(f"{ref.source}: the hub cannot be reached: {said}", hint="check the network and HTTPS_PROXY")


def _failed(ref: ModelRef, exc: OSError) -> BuilderError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapabilityError(f"{ref.source}: no space for the download: {exc}", hint="free space, or move HF_HOME")
    return RemoteError(f"{ref.source}: the hub cannot be reached: {exc}", hint="check the network and HTTPS_PROXY")
