"""Files that are replaced whole or not at all."""

import pytest

from deformdetr.engine._files import write_atomically, write_text_atomically


def test_content_is_replaced(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "zweitens: ä"):
        write_text_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
