"""Asynchronous method handlers, wrapped so that long calls can be ended. They run in the task that the guard ran in,
and so see the principal that it set."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from identity_client.aio.streams import Sweeper, TaskStream
from identity_client.errors import IdentityError, MalformedRequest
from identity_client.principal import Principal, find_principal, set_principal
from identity_client.sync.handlers import Behaviour, Handler, Prelude, behaviour_of, rebuilt

Context = grpc.aio.ServicerContext
Refuse = Callable[["Context[Any, Any]", IdentityError], Awaitable[None]]


def is_async(handler: Handler[Any, Any]) -> bool:
    """Whether the loop runs the handler, and not the server's thread pool."""
    behaviour = behaviour_of(handler)
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


class AsyncBinding:
    """An asynchronous handler of one method, prepared to be run for its callers."""

    def __init__(self, method: str, handler: Handler[Any, Any], *, sweeper: Sweeper, refuse: Refuse) -> None:
        self._method = method
        self._handler = handler
        self._sweeper = sweeper
        self._refuse = refuse
        self._is_generator = inspect.isasyncgenfunction(behaviour_of(handler))
        self._behaviour = behaviour_of(handler)
        self._prepared = handler
        if handler.request_streaming or handler.response_streaming:
            self._behaviour = (self._ending_generator if self._is_generator else self._ending)(self._behaviour)
            self._prepared = rebuilt(handler, self._behaviour, handler.request_streaming)

    def admit(self, principal: Principal | None) -> Handler[Any, Any]:
        """The handler to run for *principal*. To be called in the call's context."""
        set_principal(principal)
        return self._prepared

    def open(self, prelude: Prelude) -> Handler[Any, Any]:
        """The same, for whom *prelude* says. The request comes as a stream, so that none is awaited before."""

        async def opened(requests: Any, context: Context[Any, Any]) -> Any:
            request = await self._opened(prelude, requests, context)
            return await self._behaviour(request, context)

        async def opened_generator(requests: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
            request = await self._opened(prelude, requests, context)
            async with aclosing(self._behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        run = opened_generator if self._is_generator else opened
        return rebuilt(self._handler, run, is_request_streaming=True)

    async def _opened(self, prelude: Prelude, requests: Any, context: Context[Any, Any]) -> Any:
        try:
            set_principal(prelude(context))
            if self._handler.request_streaming:
                return requests
            async for request in requests:
                return request
            raise MalformedRequest()
        except IdentityError as error:
            await self._refuse(context, error)
            raise

    def _ending_generator(self, behaviour: Behaviour) -> Behaviour:
        async def guarded(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
            principal = find_principal()
            if principal is None:  # nothing can end a call that nobody in particular makes
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
                return
            with self._sweeper.watching(TaskStream(self._method, principal, context)) as stream:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        stream.is_sending = True
                        yield response
                        stream.is_sending = False
                        if stream.error is not None:
                            break
            if stream.error is not None:
                await self._refuse(context, stream.error)

        return guarded

    def _ending(self, behaviour: Behaviour) -> Behaviour:
        """For a handler that writes its responses itself, or has but one."""

        async def guarded(request: Any, context: Context[Any, Any]) -> Any:
            principal = find_principal()
            if principal is None:
                return await behaviour(request, context)
            response = None
            with self._sweeper.watching(TaskStream(self._method, principal, context)) as stream:
                response = await behaviour(request, context)
            if stream.error is not None:
                await self._refuse(context, stream.error)
            return response

        return guarded
