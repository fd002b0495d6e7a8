"""Checkpoints by name: a path, a URL, or a repository of the Hugging Face Hub."""

from pathlib import Path

from deformdetr._files._download import fetch_url, is_url
from deformdetr._files._hub import HubName, HubOptions, choose_checkpoint, fetch_checkpoint
from deformdetr._files._paths import check_readable, expand_path


def locate_checkpoint(
    source: str | Path,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the path of a checkpoint, which is downloaded if it is not a local one.

    Args:
        source: One of

            * a path, in which `~` and variables are expanded. A path that exists is never taken for a name, and neither
              is `user/name` beside a folder `user`. Of a folder `model.safetensors`, `pytorch_model.bin`, `best.pt` or
              `last.pt` is taken, or its only checkpoint.
            * a URL of the scheme http, https or file. It is downloaded once, into the folder of `torch.hub`.
            * `user/name`, `user/name@revision`, `user/name:file.pth` or `user/name@revision:file.pth`: a repository
              of the Hugging Face Hub, and if needed its branch, tag or commit, and the file. Without a file, it is
              chosen as in a folder. It is downloaded once, into the cache of huggingface_hub.
        token: Token for the Hub; None uses that of the last login.
        cache_dir: Folder for downloads from the Hub; None is huggingface_hub's own.
        local_files_only: Whether to use earlier downloads from the Hub only, without a connection.

    Raises:
        FileNotFoundError: If there is no such file, repository, revision or URL.
        PermissionError: If it may not be read without a login.
        ConnectionError: If it cannot be downloaded completely; nothing is kept then.
        ModuleNotFoundError: If it is a name on the Hub and huggingface_hub is not installed.
        ValueError: If a variable in a path is not set, a URL is not valid, or a folder or a repository does not hold a
            single checkpoint.

    Examples:
        >>> from deformdetr.integrations import locate_checkpoint
        >>> locate_checkpoint("https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth")  # doctest: +SKIP
        >>> locate_checkpoint("SenseTime/deformable-detr")  # doctest: +SKIP
    """
    if isinstance(source, str) and is_url(source):
        return fetch_url(source)
    found = parse_source(source)
    if isinstance(found, HubName):
        return fetch_checkpoint(found, HubOptions(token, cache_dir, local_files_only))
    if _exists(found) and found.is_dir():
        files = [each.name for each in found.iterdir() if each.is_file()]
        return found / choose_checkpoint(files, f"{found} is a folder; name a file in it: it")
    check_readable(found)
    return found


def parse_source(source: str | Path) -> Path | HubName:
    """Return the path or the name on the Hub that a source other than a URL stands for.

    What exists is a path. So is `user/name` beside a folder `user`: in a folder with `runs`, `runs/nme` is a path that
    does not exist, but `runs/nme@main` is a name.

    Raises:
        FileError: If a variable in a path is not set.
    """
    path = Path(source) if _exists(Path(source)) else expand_path(source)
    name = HubName.parse(source) if isinstance(source, str) and not _exists(path) else None
    if name is None or (name == HubName(name.repository) and path.parent.is_dir()):
        return path
    return name


def _exists(path: Path) -> bool:
    """Return whether a path exists, False for one that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
