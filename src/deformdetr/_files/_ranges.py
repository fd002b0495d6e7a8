"""Reading parts of files over HTTP."""

import time
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from deformdetr._files._paths import reason_of

# Seconds without any data after which a request counts as failed.
_TIMEOUT = 60
# Seconds to wait before each further attempt.
_WAITS = (1, 2, 4)
# What a server answers that may do better later, beside those from 500.
_PASSING = (408, 425, 429)
_PARTIAL = 206


def read_range(url: str, start: int, size: int) -> bytes:
    """Return `size` bytes of the content of a URL, from offset `start`. A request that fails is repeated three times.

    Raises:
        ConnectionError: If the bytes cannot be had. The message names the URL and the reason.
    """
    request = Request(url, headers={"User-Agent": "deformdetr", "Range": f"bytes={start}-{start + size - 1}"})
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
            reason = reason_of(error.reason) if isinstance(error.reason, Exception) else str(error.reason)
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
