"""What routes are handed."""

from typing import Annotated

from fastapi import Depends, Request

from service.core import Core


def core_of(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


# A coroutine: FastAPI would send a plain function through a thread each time.
async def _core(request: Request) -> Core:
    return core_of(request)


CoreHere = Annotated[Core, Depends(_core)]
