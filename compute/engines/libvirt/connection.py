"""Connections to a libvirt host, and the promise that every call ends."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from compute.engines.base import EngineError, Unreachable
from compute.engines.libvirt import binding as lv

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS, KEEPALIVE_MISSES = 5, 3
PARTING_SECONDS = 2
# At once, those that outlived their deadline included: a machine whose QEMU hangs holds one each time it is asked.
MOST_CALLS = 12


class Host:
    """One libvirt host. Connections are opened when there is none to spare, and kept for the next call.

    Each serves one call at a time: calls that wait on one connection when it breaks have been seen to hang, and then
    to crash, inside libvirt.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._idle: list[Any] = []
        self._free = threading.Semaphore(MOST_CALLS)
        # Left to the interpreter's end, the binding's own clean-up finds its modules gone and complains.
        atexit.register(self._close)

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
                answers.put((self._do(work), None))
            except Exception as error:  # raised again in the caller's thread
                answers.put((None, error))
            finally:
                self._free.release()

        thread = threading.Thread(target=run, name=f"libvirt {self.uri}", daemon=True)
        thread.start()
        try:
            answer, error = answers.get(timeout=seconds)
        except Empty:
            raise Unreachable(said=f"no answer within {seconds:g} s") from None
        except BaseException:
            # A signal asks us to go, and the thread goes with us: rather not between a freeze and its thaw.
            thread.join(PARTING_SECONDS)
            raise
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]

    def _do(self, work: Callable[[Any], T]) -> T:
        conn = None
        try:
            conn = self._spare() or self._opened()
            answer = work(conn)
        except lv.libvirtError as error:
            log.info("libvirt %s: %s", self.uri, error)
            said = error.get_error_message() or str(error)
            usable = conn is not None and not cut_off(error) and _alive(conn)
            if usable:
                self._idle.append(conn)
            if not usable or hangs(error):
                raise Unreachable(said=said) from error
            raise EngineError("engine-error", said=said, number=error.get_error_code()) from error
        self._idle.append(conn)
        return answer

    def _close(self) -> None:
        while self._idle:
            with suppress(lv.libvirtError):
                self._idle.pop().close()

    def _spare(self) -> Any | None:
        while self._idle:
            # Only ever one thread gets it: a list's pop is atomic. It may be empty by now.
            with suppress(IndexError):
                conn = self._idle.pop()
                if _alive(conn):
                    return conn
        return None

    def _opened(self) -> Any:
        _run_event_loop()
        conn = lv.open(self.uri)
        # A libvirtd that is stopped or cut off answers no keepalive: then the waiting call raises.
        conn.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_MISSES)
        return conn


def cut_off(error: Any) -> bool:
    """Does the error come from the connection, and not from what was asked?"""
    return error.get_error_domain() in (lv.VIR_FROM_RPC, lv.VIR_FROM_REMOTE)


def hangs(error: Any) -> bool:
    """Did libvirt wait in vain (half a minute) for somebody else's work on the machine?"""
    return bool(error.get_error_code() == lv.VIR_ERR_OPERATION_TIMEOUT)


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
