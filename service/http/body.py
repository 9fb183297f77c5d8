"""Read a request's body before its deadline."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from time import perf_counter

from service.errors import Code, ServiceError

SMALL_JSON = 64 << 10
"""Bytes. JSON up to this size is parsed without waiting for a turn."""


def deadline_of(started: float, limit: float, requested: float | None) -> float:
    """Return a request's deadline in seconds of perf_counter().

    ``started`` is the request's arrival, ``limit`` the server's timeout and ``requested`` the client's, in seconds.
    """
    return started + (limit if requested is None else min(limit, requested))


async def read_body(body: Awaitable[bytes], deadline: float) -> bytes:
    """Return a request's body.

    Raises ServiceError body_timeout if it does not arrive before the deadline.
    """
    try:
        async with asyncio.timeout(deadline - perf_counter()):
            return await body
    except TimeoutError as error:
        raise ServiceError(Code.BODY_TIMEOUT, "the body did not arrive before the deadline") from error


class JsonTurn:
    """Allows one request at a time to parse large JSON. Parsing takes about thirty times its size in memory."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    @asynccontextmanager
    async def take(self, size: int, deadline: float) -> AsyncIterator[None]:
        """Wait for a turn to parse ``size`` bytes.

        Raises ServiceError deadline_exceeded.
        """
        if size <= SMALL_JSON:
            yield
            return
        try:
            async with asyncio.timeout(deadline - perf_counter()):
                await self._free.acquire()
        except TimeoutError as error:
            raise ServiceError(Code.DEADLINE, "the deadline passed before the request's JSON was read") from error
        try:
            yield
        finally:
            self._free.release()
