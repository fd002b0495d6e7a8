"""Checkpoints in repositories of the Hugging Face Hub."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deformdetr._files._errors import FileError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
# Names of checkpoints in folders and repositories, in order of preference: those of this library and of transformers,
# then those of runs.
CHECKPOINT_NAMES = ("model.safetensors", "pytorch_model.bin", "best.pt", "last.pt")

_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^:\s]+))?(?::(\S+))?", re.ASCII)


class HubName(NamedTuple):
    """A repository of models on the Hub, and one of its files: `user/name`, `user/name@revision:folder/file.pth`."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Return the name, or None if this cannot be one, such as `runs/best.pt` and `a/b/c`."""
        found = _NAME.fullmatch(text)
        if found is None or found[1].lower().endswith(CHECKPOINT_SUFFIXES):
            return None
        return cls(found[1], found[2], found[3])

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return self.repository + revision + ("" if self.file is None else f":{self.file}")


class _NoSuchEntryError(FileNotFoundError):
    """A repository can be read, but lacks a file."""


class HubOptions(NamedTuple):
    """How to reach the Hub, in the words of huggingface_hub."""

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


def fetch_checkpoint(name: HubName, options: HubOptions) -> Path:
    """Return the local copy of a checkpoint, which huggingface_hub downloads at the first call and checks.

    A name without a file stands for the first of `CHECKPOINT_NAMES`, or for the only checkpoint in the repository.

    Raises:
        ModuleNotFoundError: If huggingface_hub is not installed.
        FileNotFoundError: If there is no such repository, revision or file.
        FileError: If no file is named and the repository does not hold a single checkpoint.
        PermissionError: If the repository is gated and the token has no access.
        ConnectionError: If the Hub cannot be reached, or the transfer fails.
    """
    _require_hub(name)
    if name.file is not None:
        return _fetch(name, options)
    failure: OSError | None = None
    for file in CHECKPOINT_NAMES:
        try:
            return _fetch(name._replace(file=file), options)
        except _NoSuchEntryError:
            continue
        except ConnectionError as error:
            # Another file may have been downloaded before.
            failure = failure or error
            options = options._replace(local_files_only=True)
    if failure is not None:
        raise failure
    if options.local_files_only:
        raise FileNotFoundError(f"{name} has not been downloaded before, or needs the name of its file")
    from huggingface_hub import HfApi

    with _hub_errors(name, options):
        files = HfApi(token=options.token).list_repo_files(name.repository, revision=name.revision)
    file = choose_checkpoint(files, str(name))
    return _fetch(name._replace(file=file), options)


def fetch_file(name: HubName, options: HubOptions) -> Path | None:
    """Return the local copy of the file of a repository, or None if the repository has no such file.

    Errors are those of `fetch_checkpoint`.
    """
    _require_hub(name)
    try:
        return _fetch(name, options)
    except (_NoSuchEntryError, ConnectionError) as error:
        is_missing = isinstance(error, _NoSuchEntryError) and not options.local_files_only
        if is_missing or _is_known_to_miss(name, options):
            return None
        raise


def _is_known_to_miss(name: HubName, options: HubOptions) -> bool:
    """Return whether an earlier request for a file has found that the repository does not have it."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, str(name.file), cache_dir=options.cache_dir, revision=name.revision)
    return found is _CACHED_NO_EXIST


def choose_checkpoint(files: Sequence[str], where: str) -> str:
    """Return the best known or only checkpoint of some files.

    Raises:
        FileError: If there is none, or several of other names.
    """
    checkpoints = [file for file in files if file.lower().endswith(CHECKPOINT_SUFFIXES)]
    known = [name for name in CHECKPOINT_NAMES if name in checkpoints]
    if known or len(checkpoints) == 1:
        return (known or checkpoints)[0]
    if not checkpoints:
        raise FileError(f"{where} holds no checkpoint, no file that ends in {', '.join(CHECKPOINT_SUFFIXES)}")
    listed = ", ".join(sorted(checkpoints)[:8]) + ", ..." * (len(checkpoints) > 8)
    raise FileError(f"{where} holds several checkpoints, name one: {listed}")


@contextmanager
def _hub_errors(name: HubName, options: HubOptions) -> Iterator[None]:
    """Turn the errors of huggingface_hub into Python's own, with a line that says what to do."""
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name.repository} is gated: accept its conditions on its page on the Hub, and {login}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file {name.repository}, and no repository on the Hub of this name that you may read; if it "
            f"is private, {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name.repository} on the Hub has no revision {name.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        if options.local_files_only:
            raise _NoSuchEntryError(f"{name} has not been downloaded before") from error
        reason = _first_line(error.__cause__ or error)
        raise ConnectionError(
            f"{name} has not been downloaded before, and the Hub cannot be reached: {reason}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise _NoSuchEntryError(f"{name.repository} on the Hub has no file {name.file!r}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"there is no file {name}, and it is no name on the Hub: {error}") from error
    except (OSError, http_error()) as error:
        raise ConnectionError(f"{name} cannot be downloaded from the Hub: {_first_line(error)}") from error


def http_error() -> type[Exception]:
    """Return the base class of errors of huggingface_hub's HTTP client, no `OSError` in newer releases."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _require_hub(name: HubName | str) -> None:
    """Check that huggingface_hub is installed.

    Raises:
        ModuleNotFoundError: If it is missing. The message tells how to install it.
    """
    try:
        import huggingface_hub  # noqa: F401 - It is imported where it is needed.
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'there is no file {name}, and the Hub needs huggingface_hub: pip install "deformdetr[hub]"',
            name="huggingface_hub",
        ) from error


def _fetch(name: HubName, options: HubOptions) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(name, options):
        return Path(hf_hub_download(name.repository, str(name.file), revision=name.revision, **options._asdict()))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
