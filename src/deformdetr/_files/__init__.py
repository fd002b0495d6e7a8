"""Files: tensors, settings and JSON are read and written by one set of rules, and paths are expanded by one.

Readers refuse what is damaged or foreign with `FileError`, which names the file and the reason in one line, and a
missing file with `FileNotFoundError`. Writers leave the old file or the new one, and raise `OSError` with the name of
the file.
"""

from deformdetr._files._errors import FileError
from deformdetr._files._paths import check_writable, expand_path
from deformdetr._files._replacing import remove_unfinished, replacing, write_text
from deformdetr._files._settings import read_json, read_mapping, write_mapping
from deformdetr._files._tensors import (
    check_tensors,
    read_tensor_file,
    reading_tensors,
    write_tensor_file,
    write_tensors,
)

__all__ = [
    "FileError",
    "check_tensors",
    "check_writable",
    "expand_path",
    "read_json",
    "read_mapping",
    "read_tensor_file",
    "reading_tensors",
    "remove_unfinished",
    "replacing",
    "write_mapping",
    "write_tensor_file",
    "write_tensors",
    "write_text",
]
