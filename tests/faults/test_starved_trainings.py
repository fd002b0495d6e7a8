"""Trainings on a full disk and in a folder that becomes read-only end in one line, and resume bit for bit.

Root gets a small file system. Other users get limits of file sizes and folders without permission to write.
"""

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fragile_runs import Training, assert_same_run

pytestmark = pytest.mark.slow


def test_training_on_a_full_disk_ends_in_one_line_and_resumes(tmp_path, reference, seed):
    # The latest checkpoint, the best one and another that is being written take 0.8 MB.
    room = random.Random(seed).randint(100, 700) * 1024
    with _file_system(tmp_path / "disk", room) as is_mounted:
        run = tmp_path / "disk" / "run"
        training = Training(run, folder=tmp_path, file_size=None if is_mounted else room // 3)
        assert training.end() == 2
        assert training.message.startswith("deformdetr: ")
        assert training.message.count("\n") == 0
        assert "cannot be written: " in training.message or "No space left" in training.message
        if is_mounted:
            _remount(run.parent, "size=50m")
        assert Training(run, folder=tmp_path).end() == 0
        assert_same_run(run, reference.run)


def test_training_in_a_folder_that_becomes_read_only_ends_in_one_line_and_resumes(tmp_path, reference):
    with _file_system(tmp_path / "disk", 50 << 20) as is_mounted:
        run = tmp_path / "disk" / "run"
        training = Training(run, folder=tmp_path)
        while training.process.is_alive() and not (run / "last.pt").exists():
            training.process.join(0.01)
        if is_mounted:
            _remount(run.parent, "ro")
        else:
            run.chmod(0o500)
        assert training.end() == 2
        assert training.message.count("\n") == 0
        assert "Read-only file system" in training.message or "Permission denied" in training.message
        if is_mounted:
            _remount(run.parent, "rw")
        run.chmod(0o700)
        assert Training(run, folder=tmp_path).end() == 0
        assert_same_run(run, reference.run)


@contextmanager
def _file_system(folder: Path, size: int) -> Iterator[bool]:
    """Make a folder, if possible as a file system of so many bytes, and yield whether it is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, option: str) -> None:
    # A file system cannot become read-only while a file in it is being written.
    until = time.monotonic() + 30
    while subprocess.run(
        ["mount", "-o", f"remount,{option}", str(folder)], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < until, option
