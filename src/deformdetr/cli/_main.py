"""Entry point of the command line, which reports errors in one message."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

_EXTRAS = {
    "train": ("accelerate", "matplotlib", "rich", "yaml"),
    "hub": ("huggingface_hub",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "video": ("av",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0 for success, 1 if some images were skipped, 2 for an error, 130 for an interruption, 143 or 129 for
    a training that SIGTERM or SIGHUP ended, and 141 if the reader of the output closed it.

    Args:
        arguments: Arguments of the command line, by default those of the process.

    Examples:
        >>> from deformdetr.cli import main
        >>> main(["--version"])  # doctest: +ELLIPSIS
        0...
        0
    """
    _print_any_text()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from deformdetr.cli._commands import run

        # The option is accepted both before and after the command.
        return run([each for each in given if each != "--debug"])
    except KeyboardInterrupt as error:
        unsaved = "interrupted; saved files are complete, and `--resume` continues from them"
        return _fail(str(error) if error.args else unsaved, 128 + getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:
        # Python closes the output again on exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        extra = next((extra for extra, names in _EXTRAS.items() if error.name in names), None)
        if extra is None:
            raise
        return _fail(f'{error.name} is not installed: pip install "deformdetr[{extra}]"', 2)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            return _fail(f"there is not enough memory; smaller batches or images need less ({_first_line(error)})", 2)
        if not _is_user_error(error):
            raise
        if "--debug" in given:
            traceback.print_exc()
        return _fail(str(error), 2)


def _print_any_text() -> None:
    """Escape characters that a terminal cannot show, such as those of names of categories, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _is_user_error(error: Exception) -> bool:
    """Return whether the message of an error tells what to correct, unlike that of a bug."""
    from deformdetr.engine import TrainingError

    return isinstance(error, ValueError | OSError | TrainingError)


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    is_of_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or is_of_cpu


def _first_line(error: Exception) -> str:
    """Return the first line of a message, or the kind of an error without one."""
    return str(error).partition("\n")[0] or type(error).__name__


def _fail(message: str, status: int) -> int:
    from deformdetr._text import printable

    # Of several processes, one has the message.
    if message:
        print(f"deformdetr: {printable(message)}", file=sys.stderr)
    return status
