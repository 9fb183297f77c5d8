"""What routes are handed."""

from typing import Annotated

from fastapi import Depends, Request

from service.core import Core
from service.middleware import Record, record_of


def core_of(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


# Coroutines: FastAPI would send plain functions through a thread each time.
async def _core(request: Request) -> Core:
    return core_of(request)


async def _record(request: Request) -> Record:
    return record_of(request)


CoreHere = Annotated[Core, Depends(_core)]
RecordHere = Annotated[Record, Depends(_record)]
