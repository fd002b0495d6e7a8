"""Frames of video files, read and written by PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from deformdetr._files import replacing
from deformdetr.data import DatasetError


def video_frames(path: str | Path) -> Iterator[UInt8[Tensor, "3 height width"]]:
    """Yield the frames of a video file as 8-bit RGB.

    Raises:
        ModuleNotFoundError: If PyAV is not installed.
        DatasetError: If the file is missing or is not a video. The message names the file.

    Examples:
        >>> import deformdetr
        >>> from deformdetr.engine import video_frames
        >>> detector = deformdetr.load("runs/mine")  # doctest: +SKIP
        >>> for result in detector.stream(video_frames("clip.mp4")):  # doctest: +SKIP
        ...     print(result)
    """
    with _opened(path) as container:
        for frame in container.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()


class FrameWriter(Protocol):
    """Appends a picture to a video."""

    def __call__(self, picture: Image.Image) -> None:
        """Append a picture. All must have the same size."""
        ...


@contextmanager
def writing_video(path: Path, *, like: Path) -> Iterator[FrameWriter]:
    """Open a video file for pictures, with the frame rate of another. It replaces an existing one when it is complete.

    Args:
        path: File to write, .mp4.
        like: The other video.

    Raises:
        DatasetError: If the other video cannot be read.
        OSError: If the file cannot be written.
    """
    av = require_av()
    with _opened(like) as original:
        rate = original.streams.video[0].average_rate or 25
    with replacing(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream: Any = container.add_stream("h264", rate=rate)
        stream.pix_fmt = "yuv420p"

        def write(picture: Image.Image) -> None:
            # This pixel format needs even sides.
            pixels = np.asarray(picture)[: picture.height // 2 * 2, : picture.width // 2 * 2]
            if not stream.codec_context.is_open:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))

        yield write
        container.mux(stream.encode())


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a video for reading.

    Raises:
        DatasetError: If it cannot be opened, or reading it fails.
    """
    av = require_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path}: has no video")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise DatasetError(f"{path}: cannot be read as a video: {error}") from error


def require_av() -> ModuleType:
    """Return the package `av`.

    Raises:
        ModuleNotFoundError: If it is not installed. The message tells how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError('videos need PyAV: pip install "deformdetr[video]"', name="av") from error
    module: ModuleType = av
    return module
