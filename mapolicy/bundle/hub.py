"""Download policies from the Hugging Face Hub and publish them there.

    hf://NAMESPACE/NAME[/FILE][@REVISION]

Only such a reference uses the network. The downloaded bytes are checked like those of any other file. A policy is a
model repository with a file `policy.safetensors`. Account, cache (`HF_HOME`), another hub (`HF_ENDPOINT`) and offline
mode (`HF_HUB_OFFLINE`) are those of huggingface_hub.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import EnvironmentFault, InputError, MapolicyError, UsageError
from ..runtime.files import Precheck, write_atomically
from .download import too_large
from .limits import Limits
from .source import BUNDLE_FILE, Fetched, read_file, redacted

FORM = "hf://NAMESPACE/NAME[/FILE][@REVISION]"

_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*"
_REPOSITORY = re.compile(rf"{_SEGMENT}/{_SEGMENT}")
_REFERENCE = re.compile(
    rf"hf://({_SEGMENT}/{_SEGMENT})(?:/({_SEGMENT}(?:/{_SEGMENT})*))?(?:@({_SEGMENT}(?:/{_SEGMENT})*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def publish(repository: str, files: Mapping[str, bytes], message: str, private: bool) -> str:
    """Commit files to a model repository on the hub, which is created if it does not exist.

    Args:
        repository: NAMESPACE/NAME.
        files: content by name. Files of these names are replaced, others stay.
        message: the commit message.
        private: whether a new repository is private; an existing one is not changed.

    Returns:
        The commit's hash, 40 hexadecimal digits.

    Raises:
        UsageError: `repository` is not a repository's name.
        EnvironmentFault: the account may not write there, the network or the hub failed, or offline mode forbids it.
    """
    check_repository(repository)
    place = f"hf://{repository}"
    with _translated_errors(place):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(library_name="mapolicy")
        # File objects are uploaded by plain HTTP, which every hub supports; bytes would use Xet, which few hubs have.
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=io.BytesIO(content))
            for name, content in files.items()
        ]
        is_new = not api.repo_exists(repository)
        with _without_progress_bars():
            api.create_repo(repository, private=private or None, exist_ok=True)
            try:
                with _translated_errors(place):
                    return _checked_commit(api.create_commit(repository, additions, commit_message=message).oid)
            except MapolicyError as problem:
                if not is_new:
                    raise
                why = f"{problem.why}; the repository was created and is empty"
                raise type(problem)(problem.what, why, problem.remedy) from None


def check_repository(repository: str) -> None:
    """Check that a repository's name is NAMESPACE/NAME.

    Raises:
        UsageError: it is not.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(
            redacted(repository), "is not a repository's name", "give NAMESPACE/NAME, such as birdlab/birds-policy"
        )


def from_hub(reference: str, limits: Limits, precheck: Precheck) -> Fetched:
    """Download the file that an `hf://` reference names; arguments and errors as in `fetch.fetch`."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(redacted(reference), "is not a reference to the hub", f"the form is {FORM}")
    repository, file, revision = match[1], match[2] or BUNDLE_FILE, match[3] or "main"
    with _translated_errors(reference):
        import huggingface_hub as hf

        offline = hf.constants.HF_HUB_OFFLINE
        cached = hf.try_to_load_from_cache(repository, file, revision=revision) if _COMMIT.fullmatch(revision) else None
        if isinstance(cached, str):
            path = cached
        else:
            wanted = revision
            if not offline:
                facts = hf.get_hf_file_metadata(hf.hf_hub_url(repository, file, revision=revision))
                if facts.size is None:
                    raise _NotAHubError
                if facts.size > limits.file_bytes:
                    raise too_large(reference, facts.size, limits)
                # By commit: a branch may move between two requests, and the cache would store the file under the wrong
                # one.
                wanted = _checked_commit(facts.commit_hash)
            path = hf.hf_hub_download(
                repository, file, revision=wanted, local_files_only=offline, library_name="mapolicy"
            )
        # The cache stores a file under its commit, so this is the commit of the file read, offline as well.
        snapshot = Path(path).parents[file.count("/")]
        commit = _checked_commit(snapshot.name)
        if not offline and commit != revision:
            _remember(snapshot.parents[1] / "refs" / revision, commit)
    name = "" if file == BUNDLE_FILE else f"/{file}"
    return Fetched(read_file(Path(path), limits, precheck), reference, f"hf://{repository}{name}@{commit}", commit)


def _remember(reference: Path, commit: str) -> None:
    """Record a branch's or tag's commit in huggingface_hub's cache, so that offline mode finds it.

    Layout: huggingface.co/docs/huggingface_hub/guides/manage-cache, "Refs".
    """
    with suppress(OSError, EnvironmentFault):  # a read-only cache is no problem online
        if not reference.exists() or reference.read_text() != commit:
            write_atomically(reference, commit.encode())


def _checked_commit(commit: str | None) -> str:
    if commit is None or not _COMMIT.fullmatch(commit):
        raise _NotAHubError
    return commit


class _NotAHubError(Exception):
    """A server answered, but not as the hub would."""


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Inside the block no progress bars: uploads of several files would draw one even without a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _translated_errors(reference: str) -> Iterator[None]:
    """Turn errors of huggingface_hub (1.x or 2.x) into one-line errors; hide its warnings, which repeat server text."""
    from huggingface_hub import constants, errors

    # Importing this sets the log level; a later import inside the block would undo the change below.
    from huggingface_hub.utils import logging as hf_logging

    # The base class is httpx's or httpx2's; both major versions of the library offer it under this name only.
    transport_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    logger = hf_logging.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MapolicyError:
        raise
    except Exception as problem:  # `_fault` translates the errors that it knows
        # The cause of "Error while uploading" and of "cannot find it in the cache" says what happened.
        if isinstance(problem, RuntimeError | errors.LocalEntryNotFoundError):
            problem = problem.__cause__ if isinstance(problem.__cause__, Exception) else problem
        fault = _fault(reference, problem, isinstance(problem, transport_error), constants.HF_HUB_OFFLINE)
        if fault is None:
            raise
        raise fault from None
    finally:
        logger.setLevel(level)


def _fault(reference: str, problem: Exception, unreachable: bool, offline: bool) -> MapolicyError | None:
    from huggingface_hub import errors

    status = getattr(getattr(problem, "response", None), "status_code", None)
    match problem:
        case errors.GatedRepoError():
            return InputError(reference, "is gated", "ask for access on its page, then log in with `hf auth login`")
        case errors.RepositoryNotFoundError():
            why = "no such repository, or it is private and your account may not see it"
            return InputError(reference, why, "check the name, or log in with `hf auth login`")
        case errors.RevisionNotFoundError():
            return InputError(reference, "has no such revision", "name a branch, a tag or a full commit hash")
        case errors.OfflineModeIsEnabled():
            return EnvironmentFault(reference, "HF_HUB_OFFLINE is set", "unset it")
        case errors.LocalEntryNotFoundError() if offline:
            why = "is not in the cache, and HF_HUB_OFFLINE is set"
            return EnvironmentFault(reference, why, "unset HF_HUB_OFFLINE, or pull it once while online")
        case errors.HFValidationError():
            return UsageError(reference, "is not a name that the hub accepts", f"the form is {FORM}")
        case _ if status in (401, 403):
            why = f"the hub refuses it to this account (HTTP {status})"
            return EnvironmentFault(reference, why, "log in with `hf auth login` and a token that may do it")
        case errors.EntryNotFoundError():
            return InputError(reference, "the repository has no such file", f"name it; the form is {FORM}")
    if status is not None:
        return EnvironmentFault(reference, f"the hub answered HTTP {status}", "try again later")
    if unreachable:
        why = f"the connection to the hub failed ({type(problem).__name__})"
        return EnvironmentFault(reference, why, "check the connection; HF_HUB_OFFLINE=1 uses what was pulled before")
    if isinstance(problem, _NotAHubError | errors.FileMetadataError | KeyError | ValueError):
        return EnvironmentFault(reference, "the server's answer is not the hub's", "check HF_ENDPOINT and the proxy")
    if isinstance(problem, OSError):
        # An error of the disk has an errno; a download that ended early has none.
        why = problem.strerror or "the download was interrupted"
        return EnvironmentFault(str(problem.filename or reference), why, "try again; check the disk and HF_HOME")
    return None
