"""Turn an exception that ended a command into a message that says what to do."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import PurePath

from models.errors import UserError
from service.errors import ServiceError

DISK_FULL = re.compile(
    r"No space left on device|os error 28|PytorchStreamWriter failed|inline_container.*unexpected pos"
)
"""How safetensors and torch report a write that failed on a full disk."""
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Unable to allocate", re.IGNORECASE)
NO_SPACE = "no space left on the device: free some, or write to another folder"
NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException) -> str | None:
    """Return the message for an error that the user can correct, or None for a defect of this code."""
    if isinstance(error, UserError | ServiceError):
        return str(error)
    for cause in causes(error):
        if isinstance(cause, OSError):
            return explain_os_error(cause)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return f"out of memory ({first_line(error)}): use a smaller batch or fewer images"
    if DISK_FULL.search(str(error)):
        return NO_SPACE
    if isinstance(error, KeyError) and "getpwuid" in str(error):
        return f"the user id {os.getuid()} has no name here: set the variable USER to any name"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "the home directory is unknown: set the variable HOME to a folder that this user may write to"
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def explain_os_error(error: OSError) -> str:
    """Return the message for an error of the operating system, with the file's name if it is known."""
    path = f"{error.filename}: " if isinstance(error.filename, str) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return path + NO_SPACE
    if is_in_home(error):
        home = os.environ.get("HOME", "")
        return f"{path}{error.strerror}: set the variable HOME, here {home!r}, to a folder that this user may write to"
    if error.errno in NOT_PERMITTED:
        return f"{path}{error.strerror}: choose a folder that this user may read and write"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{path}too many open files: raise the limit with `ulimit -n`"
    return f"{path}{error.strerror}" if error.strerror else first_line(error) or type(error).__name__


def is_in_home(error: OSError) -> bool:
    """Return whether an inaccessible file is a cache or a setting in the home directory."""
    home = os.environ.get("HOME")
    if not home or not isinstance(error.filename, str):
        return False
    path = PurePath(error.filename)
    return path.is_relative_to(home) and path.relative_to(home).parts[:1] in ((".cache",), (".config",), (".local",))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return str(error).strip().partition("\n")[0]
