"""Long calls of synchronous handlers. A thread that blocks cannot be interrupted, so the handler of such a call runs on
a thread of its own, and grpc's thread waits for it or for the word that the call is to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import Context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

from identity_client.access.streams import INTERVAL_SECONDS, OpenStream, Watch
from identity_client.principal import Principal


class Sweeper:
    """Sweeps a Watch from a thread of its own, which ends when no call is left."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._is_running = False

    def wake(self) -> None:
        """To be called whenever a call was added."""
        with self._lock:
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name="identity-streams", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(INTERVAL_SECONDS)
            self._watch.sweep()
            with self._lock:
                if not len(self._watch):
                    self._is_running = False
                    return


_Answer: TypeAlias = tuple[Any] | BaseException | None  # a response; what the handler raised; nothing more comes


class HandlerThreads:
    """Threads for handlers: as many as there are long calls, of which at most *idle_count* are kept for later ones."""

    def __init__(self, idle_count: int = 32) -> None:
        self._idle_count = idle_count
        self._idle: list[SimpleQueue[Callable[[], None]]] = []
        self._lock = threading.Lock()

    def run(self, work: Callable[[], None]) -> None:
        """Runs *work*, which does not raise, on a thread of its own."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="identity-handler", daemon=True).start()
        inbox.put(work)

    def _serve(self, inbox: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            inbox.get()()
            with self._lock:
                if len(self._idle) >= self._idle_count:
                    return
                self._idle.append(inbox)


class ThreadStream(OpenStream):
    """A call whose handler runs on a thread of its own, one response at a time: it never runs ahead of its caller."""

    __slots__ = ("_answers", "_is_wanted", "_threads")

    def __init__(self, method: str, principal: Principal, context: Any, threads: HandlerThreads) -> None:
        super().__init__(method, principal, context)
        self._threads = threads
        self._is_wanted: SimpleQueue[bool] = SimpleQueue()  # True: the next response; False: close
        self._answers: SimpleQueue[_Answer] = SimpleQueue()

    def interrupt(self) -> None:
        self._answers.put(None)

    def responses(self, produce: Callable[[], Iterator[Any]], context: Context) -> Iterator[Any]:
        """What *produce*, run in *context*, yields. Raises what it raises, and `error` as soon as the call is to end.

        The handler is then closed as soon as it yields or returns; where it waits for requests it is told `error`.
        """
        self._threads.run(partial(context.run, self._work, produce))
        try:
            while self.error is None:
                self._is_wanted.put(True)
                answer = self._answers.get()
                if self.error is not None or answer is None:
                    break
                if isinstance(answer, BaseException):
                    raise answer
                [response] = answer
                yield response
            if self.error is not None:
                raise self.error
        finally:
            self._is_wanted.put(False)

    def requests(self, requests: Iterator[Any]) -> Iterator[Any]:
        """The caller's requests. Raises `error` once the call is to end: a handler must not take that for the regular
        end of its requests."""
        try:
            for request in requests:
                if self.error is not None:
                    break
                yield request
        except Exception:
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error

    def _work(self, produce: Callable[[], Iterator[Any]]) -> None:
        if not self._is_wanted.get():
            return
        try:
            responses = produce()
            for response in responses:
                self._answers.put((response,))
                if not self._is_wanted.get():
                    if isinstance(responses, Generator):
                        responses.close()
                    return
            self._answers.put(None)
        except BaseException as failure:  # carried to grpc's thread, which raises it
            self._answers.put(failure)
