"""Signals that ask a training to end."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

# Windows has no SIGHUP.
STOP_SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A launcher repeats the signal that the terminal or the scheduler has sent to all processes.
_SECONDS_OF_REPEATS = 1.0


class StopSignals:
    """Note SIGINT, SIGTERM and SIGHUP within a block, so that a training can save before it ends.

    Another signal, a second or more after the first, has its usual effect: it ends the process at once. A signal that
    the process ignores stays ignored, such as SIGHUP under `nohup`. Python handles signals in the main thread alone; in
    other threads nothing changes.

    Attributes:
        received: Number of the first signal, or 0.

    Examples:
        >>> import signal
        >>> from deformdetr.engine._signals import StopSignals
        >>> with StopSignals() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> signals.received == signal.SIGTERM
        True
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._former: dict[int, _Handler] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            # None is a handler that was not set in Python, and could not be restored.
            self._former = {number: each for number, each in former.items() if each not in (signal.SIG_IGN, None)}
            for number in self._former:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
        elif now - self._since >= _SECONDS_OF_REPEATS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())


def leave_signals_to_parent() -> None:
    """Ignore the signals of `StopSignals` in a process that loads data, unless the process that started it sends them.

    A terminal or a job scheduler sends them to all processes, and a training could not save without its loaders.
    `multiprocessing` ends them by SIGTERM, which only its sender distinguishes. Where systems do not tell the sender,
    as macOS, SIGTERM keeps its effect.
    """
    parent = multiprocessing.parent_process()
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        # Blocked in all threads, so that the new one gets it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(parent.pid,), daemon=True).start()


def _end_for(sender: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    # The main thread may be waiting for data.
    os._exit(0)
