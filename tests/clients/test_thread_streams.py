"""Handlers that run on a thread of their own: in step with their caller, and ended without being interrupted."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from identity_client.errors import TokenRevoked
from identity_client.principal import Principal
from identity_client.sync.streams import HandlerThreads, ThreadStream
from tests.clients.issuer import Issuer


@pytest.fixture
def stream(issuer: Issuer) -> ThreadStream:
    return ThreadStream("/a.B/C", Principal(issuer.claims(), "a token"), None, HandlerThreads())


class Handler:
    """Counts what it has produced; tells when it was closed."""

    def __init__(self) -> None:
        self.produced = 0
        self.may_go_on = threading.Event()
        self.closed = threading.Event()

    def responses(self) -> Iterator[int]:
        try:
            for number in range(1_000):
                if number == 3:
                    self.may_go_on.wait(10)
                self.produced += 1
                yield number
        finally:
            self.closed.set()


def end(stream: ThreadStream) -> TokenRevoked:
    stream.error = TokenRevoked()
    stream.interrupt()
    return stream.error


def test_a_handler_does_not_run_ahead_of_its_caller(stream: ThreadStream) -> None:
    handler = Handler()
    responses = stream.responses(handler.responses, contextvars.copy_context())
    assert [next(responses), next(responses)] == [0, 1]
    assert handler.produced == 2
    responses.close()  # type: ignore[attr-defined]
    assert handler.closed.wait(10)


def test_a_caller_need_not_wait_for_a_handler_that_blocks_which_is_closed_at_its_next_response(
    stream: ThreadStream,
) -> None:
    handler = Handler()
    generator = handler.responses()  # held by another, too: nothing but close() closes it
    responses = stream.responses(lambda: generator, contextvars.copy_context())
    assert [next(responses) for _ in range(3)] == [0, 1, 2]
    threading.Timer(0.01, end, [stream]).start()
    with pytest.raises(TokenRevoked):
        next(responses)
    assert not handler.closed.is_set()
    handler.may_go_on.set()
    assert handler.closed.wait(10)
    assert handler.produced == 4


def test_what_a_handler_raises_arrives_as_it_is(stream: ThreadStream) -> None:
    failure = ValueError("the handler's own")

    def fail() -> Iterator[int]:
        raise failure
        yield 1

    with pytest.raises(ValueError, match="own") as caught:
        list(stream.responses(fail, contextvars.copy_context()))
    assert caught.value is failure


@pytest.mark.parametrize("reaction", ["returns", "raises", "answers"])
def test_whatever_a_handler_makes_of_the_end_its_call_ends_with_the_reason(stream: ThreadStream, reaction: str) -> None:
    def react() -> Iterator[int]:
        stream.error = TokenRevoked()  # and nobody interrupts
        if reaction == "raises":
            raise ValueError("the handler's own")
        if reaction == "answers":
            yield 1

    answers = []
    with pytest.raises(TokenRevoked):
        for answer in stream.responses(react, contextvars.copy_context()):
            answers.append(answer)
    assert answers == []


@pytest.mark.parametrize("is_broken_off", [False, True])
def test_requests_that_stop_because_the_call_was_ended_are_no_regular_end(
    stream: ThreadStream, is_broken_off: bool
) -> None:
    def requests() -> Iterator[Any]:
        yield "first"
        end(stream)
        if is_broken_off:
            raise RuntimeError("grpc's own words")

    received = []
    with pytest.raises(TokenRevoked):
        for request in stream.requests(requests()):
            received.append(request)
    assert received == ["first"]


def test_requests_that_break_off_by_themselves_say_why(stream: ThreadStream) -> None:
    def requests() -> Iterator[Any]:
        yield "first"
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        list(stream.requests(requests()))


def test_a_few_threads_are_kept_for_later_calls_and_the_rest_end() -> None:
    threads, gate = HandlerThreads(idle_count=2), threading.Event()
    running = [threading.Event() for _ in range(5)]
    served: list[int] = []

    def work(number: int) -> None:
        served.append(threading.get_ident())
        running[number].set()
        gate.wait(10)

    for number in range(5):
        threads.run(partial(work, number))
    assert all(event.wait(10) for event in running)
    assert len(set(served)) == 5  # none waits for another
    gate.set()
    kept = [thread for thread in threading.enumerate() if thread.ident in served]
    while len(kept := [thread for thread in kept if thread.is_alive()]) > 2:
        kept[-1].join(0.01)
    again = threading.Event()

    def work_again() -> None:
        served.append(threading.get_ident())
        again.set()

    threads.run(work_again)
    assert again.wait(10)
    assert served[-1] in served[:5]
