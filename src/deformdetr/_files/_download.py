"""Downloading files and parts of files over HTTP, completely or not at all."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch

from deformdetr._files._errors import FileError
from deformdetr._files._paths import check_readable, reason_of
from deformdetr._files._replacing import replacing

# Seconds without any data after which a transfer counts as failed.
_TIMEOUT = 60
_AGENT = {"User-Agent": "deformdetr"}
_CHUNK = 1 << 20
_WEB = ("http", "https")
# Of parts: seconds to wait before each further attempt, and what a server answers that may do better later, beside
# those from 500.
_WAITS = (1, 2, 4)
_PASSING = (408, 425, 429)
_PARTIAL = 206
# PyTorch's convention, which mmdetection and DETR follow: the name of a file ends in the first digits of its SHA-256.
_HASHED = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


class _TransferError(Exception):
    """A transfer has failed; the message is the reason."""


def is_url(source: object) -> bool:
    """Return whether this is the text of a URL with the scheme http, https or file."""
    return isinstance(source, str) and re.match(rf"({'|'.join(_WEB)}|file)://", source, re.IGNORECASE) is not None


def fetch_url(url: str) -> Path:
    """Return the local copy of a URL's content, which is downloaded at the first call.

    Copies are kept in the folder of `torch.hub`, apart from each other, because different URLs may end in one name.

    Raises:
        FileNotFoundError: If there is nothing at this URL.
        PermissionError: If the server asks for a login.
        ConnectionError: If the content cannot be downloaded completely.
        FileError: If the URL is not valid.
        OSError: If the copy cannot be written.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FileError(f"{url} is not a valid URL: {error}") from error
    if parts.scheme.lower() not in _WEB:
        if parts.netloc not in ("", "localhost"):
            raise FileError(f"{url} names the host {parts.netloc!r}; a URL of a file begins with file:///")
        path = Path(url2pathname(parts.path))
        check_readable(path)
        return path
    name = unquote(parts.path).rpartition("/")[2] or "download"
    return download_once(url, cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name)


def cache_folder() -> Path:
    """Return the folder to which PyTorch and torchvision download weights."""
    return Path(torch.hub.get_dir(), "checkpoints")


def download_once(url: str, path: Path) -> Path:
    """Download a URL to a file unless the file exists, and return its path.

    The size is compared with the one that the server announced. If the name of the file ends in the first digits of its
    SHA-256, as torchvision's do, they are compared too. Errors are those of `fetch_url`.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _explaining(url, path),
        urlopen(Request(url, headers=_AGENT), timeout=_TIMEOUT) as response,
        replacing(path) as unfinished,
        unfinished.open("wb") as file,
    ):
        digest = hashlib.sha256()
        for chunk in _receive(response, path.name):
            file.write(chunk)
            digest.update(chunk)
        _check_digest(path.name, digest.hexdigest())
    return path


def read_range(url: str, start: int, size: int) -> bytes:
    """Return `size` bytes of the content of a URL, from offset `start`. A request that fails is repeated three times.

    Raises:
        ConnectionError: If the bytes cannot be had. The message names the URL and the reason.
    """
    request = Request(url, headers=_AGENT | {"Range": f"bytes={start}-{start + size - 1}"})
    for wait in (*_WAITS, None):
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:
                if response.status != _PARTIAL:
                    raise ConnectionError(f"{url}: the server does not serve ranges of bytes (HTTP {response.status})")
                content: bytes = response.read()
        except HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in _PASSING:
                wait = None
        except URLError as error:
            reason = _unreachable(error)
        except (TimeoutError, HTTPException, ConnectionResetError) as error:
            reason = f"the transfer broke off: {reason_of(error)}"
        else:
            if len(content) == size:
                return content
            reason = f"it has {len(content):,} of {size:,} bytes from offset {start:,}"
            wait = None
        if wait is None:
            break
        time.sleep(wait)
    raise ConnectionError(f"{url}: {reason}")


@contextmanager
def _explaining(url: str, path: Path) -> Iterator[None]:
    """Turn failures of a transfer into errors that say where to put the file instead."""
    instead = f"download it another way and save it as {path}"
    try:
        yield
    except HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            raise FileNotFoundError(f"there is nothing at {url} ({status})") from error
        if error.code in (401, 403):
            raise PermissionError(f"{url} may not be downloaded without a login ({status}); {instead}") from error
        raise ConnectionError(f"{url} cannot be downloaded: {status}; {instead}") from error
    except URLError as error:
        raise ConnectionError(f"{url} cannot be downloaded: {_unreachable(error)}; {instead}") from error
    except (_TransferError, HTTPException) as error:
        raise ConnectionError(f"{url} cannot be downloaded: {error}; {instead}") from error


def _unreachable(error: URLError) -> str:
    return reason_of(error.reason) if isinstance(error.reason, Exception) else str(error.reason)


def _receive(response: Any, name: str) -> Iterator[bytes]:
    """Yield the content of a response.

    Raises:
        _TransferError: If it ends early. Python's own reader does not notice that.
    """
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced and announced.isdigit() else None
    received = 0
    with _progress_bar(total, name) as bar:
        while chunk := _read(response):
            received += len(chunk)
            if bar is not None:
                bar.update(len(chunk))
            yield chunk
    if total is not None and received != total:
        raise _TransferError(f"the transfer ended after {received:,} of {total:,} bytes")


def _read(response: Any) -> bytes:
    # Told apart from failures to write, which the same block raises as `OSError`.
    try:
        chunk: bytes = response.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise _TransferError(f"the transfer broke off: {reason_of(error)}") from error
    return chunk


def _check_digest(name: str, digest: str) -> None:
    promised = _HASHED.search(name)
    # Eight digits without a letter are more likely a date.
    if promised and not promised[1].isdigit() and not digest.startswith(promised[1]):
        raise _TransferError(
            f"its name promises a SHA-256 of {promised[1]}..., but the content has {digest[: len(promised[1])]}..."
        )


def _progress_bar(total: int | None, name: str) -> AbstractContextManager[Any]:
    """Return a bar of tqdm, or None in a context without tqdm. Without a terminal the bar is silent."""
    if find_spec("tqdm") is None:
        return nullcontext()
    from tqdm import tqdm

    bar: AbstractContextManager[Any] = tqdm(
        total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
    )
    return bar
