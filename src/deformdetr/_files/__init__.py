"""Reading and writing of tensor files, settings and JSON, expansion of paths, and downloads.

Readers raise `FileNotFoundError` for a missing file, and `FileError` for a damaged or foreign one. The message has the
file and the reason in one line. Writers leave either the old or the new file, and raise an `OSError` that names it.
"""

from deformdetr._files._download import cache_folder, download_once, is_url, read_range
from deformdetr._files._errors import FileError
from deformdetr._files._hub import CHECKPOINT_SUFFIXES, HubName, HubOptions, fetch_file, http_error
from deformdetr._files._paths import check_folder, check_writable, expand_path, fitting_name, where_from
from deformdetr._files._replacing import is_unfinished, keep_as, remove_unfinished, replacing, write_text
from deformdetr._files._settings import parse_json, read_json, read_mapping, write_mapping
from deformdetr._files._sources import locate_checkpoint, parse_source
from deformdetr._files._tensors import (
    check_stored_sums,
    check_tensors,
    read_tensor_file,
    reading_tensors,
    write_tensor_file,
    write_tensors,
)

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "FileError",
    "HubName",
    "HubOptions",
    "cache_folder",
    "check_folder",
    "check_stored_sums",
    "check_tensors",
    "check_writable",
    "download_once",
    "expand_path",
    "fetch_file",
    "fitting_name",
    "http_error",
    "is_unfinished",
    "is_url",
    "keep_as",
    "locate_checkpoint",
    "parse_json",
    "parse_source",
    "read_json",
    "read_mapping",
    "read_range",
    "read_tensor_file",
    "reading_tensors",
    "remove_unfinished",
    "replacing",
    "where_from",
    "write_mapping",
    "write_tensor_file",
    "write_tensors",
    "write_text",
]
