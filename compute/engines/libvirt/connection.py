"""One connection to a libvirt host, and the promise that every call over it ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from compute.engines.base import EngineError, Unreachable
from compute.engines.libvirt import binding as lv

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS, KEEPALIVE_MISSES = 5, 3
# Calls that outlived their deadline, of one connection: a machine whose QEMU hangs holds one each time it is asked.
MOST_ABANDONED = 8


class Connection:
    """Opened at the first call, dropped when it breaks, opened again at the next."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._conn: Any = None
        self._free = threading.Semaphore(MOST_ABANDONED)

    def call(self, work: Callable[[Any], T], seconds: float = 15) -> T:
        """``work(virConnect)`` in a thread of its own, since libvirt waits without end for a QEMU that hangs.

        Raises ``Unreachable`` when there is no connection, it breaks, or the seconds pass: then the thread is left
        to itself, and its clean-up runs when the host answers at last. ``EngineError("engine-error", said=…)`` for
        any other error of libvirt's that ``work`` did not handle.
        """
        if not self._free.acquire(blocking=False):
            raise Unreachable(said="too many calls are still waiting for an answer")
        answers: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

        def run() -> None:
            try:
                answers.put((work(self._opened()), None))
            except lv.libvirtError as error:
                answers.put((None, self._judged(error)))
            except Exception as error:  # raised again in the caller's thread
                answers.put((None, error))
            finally:
                self._free.release()

        threading.Thread(target=run, name=f"libvirt {self.uri}", daemon=True).start()
        try:
            answer, error = answers.get(timeout=seconds)
        except Empty:
            raise Unreachable(said=f"no answer within {seconds:g} s") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]

    def _opened(self) -> Any:
        with self._lock:
            if self._conn is None:
                _run_event_loop()
                self._conn = lv.open(self.uri)
                # A libvirtd that is stopped or cut off answers no keepalive: then all waiting calls raise.
                self._conn.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_MISSES)
            return self._conn

    def _judged(self, error: Any) -> EngineError:
        """What an error of the binding's means to the caller; a broken connection is dropped."""
        log.info("libvirt %s: %s", self.uri, error)
        said = error.get_error_message() or str(error)
        broken = error.get_error_domain() in (lv.VIR_FROM_RPC, lv.VIR_FROM_REMOTE)
        with self._lock:
            if self._conn is None or broken or not _alive(self._conn):
                self._conn = None
                return Unreachable(said=said)
        if error.get_error_code() == lv.VIR_ERR_OPERATION_TIMEOUT:
            # Somebody else's work holds the machine; libvirt has waited half a minute for it.
            return Unreachable(said=said)
        return EngineError("engine-error", said=said, number=error.get_error_code())


def _alive(conn: Any) -> bool:
    try:
        return bool(conn.isAlive())
    except lv.libvirtError:
        return False


_loop_lock = threading.Lock()
_loop_pid: int | None = None


def _run_event_loop() -> None:
    """libvirt's event loop, in a thread, once per process: without it keepalives are neither sent nor missed."""
    global _loop_pid  # noqa: PLW0603
    with _loop_lock:
        if _loop_pid == os.getpid():
            return
        if _loop_pid is not None:
            raise RuntimeError("libvirt was used before this process was forked: its loop would watch foreign sockets")
        lv.registerErrorHandler(_quiet, None)
        lv.virEventRegisterDefaultImpl()
        _loop_pid = os.getpid()
        threading.Thread(target=_loop, name="libvirt events", daemon=True).start()


def _loop() -> None:
    while True:
        lv.virEventRunDefaultImpl()


def _quiet(_context: None, error: tuple[Any, ...]) -> None:
    # Every error is raised as well; the default handler would print it to stderr a second time.
    log.debug("libvirt: %s", error)
