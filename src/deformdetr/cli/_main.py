"""Reading the command line, and errors as one message."""

import os
import sys
import traceback
from collections.abc import Sequence

_EXTRAS = {
    "train": ("accelerate", "matplotlib", "rich", "yaml"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give the exit status.

    0: all went well; 1: the command finished, but not for every image; 2: it was refused or failed, and said why; 130:
    it was interrupted; 141: nobody read its output to the end.

    Args:
        arguments: By default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from deformdetr.cli._commands import run

        # It may stand anywhere, before or after the command.
        return run([each for each in given if each != "--debug"])
    except KeyboardInterrupt:
        return _fail("interrupted; what was saved is complete, and `--resume` goes on from there", 130)
    except BrokenPipeError:
        # Whoever read the output has seen enough; closing it again on exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        extra = next((extra for extra, names in _EXTRAS.items() if error.name in names), None)
        if extra is None:
            raise
        return _fail(f'{error.name} is not installed: pip install "deformdetr[{extra}]"', 2)
    except (ValueError, OSError, RuntimeError) as error:
        if not _is_for_people(error):
            raise
        if "--debug" in given:
            traceback.print_exc()
        return _fail(str(error), 2)


def _is_for_people(error: Exception) -> bool:
    """Tell errors whose message says what to put right from those of the program itself."""
    from deformdetr.engine import TrainingError

    return isinstance(error, ValueError | OSError | TrainingError)


def _fail(message: str, status: int) -> int:
    print(f"deformdetr: {message}", file=sys.stderr)
    return status
