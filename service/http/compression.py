"""Request bodies with a Content-Encoding."""

import asyncio
import zlib

from starlette.types import Message, Receive

from service.errors import Code, ServiceError

PIECE = 1 << 20
"""Bytes that are decompressed at a time. A small compressed body can become a thousand times its size."""

ENCODINGS = ("gzip", "x-gzip", "deflate")


class Decompressed:
    """Receives a request's messages with their body decompressed, in messages of at most PIECE bytes.

    It holds one compressed message and one piece. The caller limits the size of the body. Raises ServiceError
    unsupported_media_type for other encodings and bad_request for damaged data.
    """

    def __init__(self, receive: Receive, encoding: str) -> None:
        self.receive = receive
        self.encoding = encoding.strip().lower()
        # Accepts the formats gzip and zlib. HTTP calls zlib deflate.
        self.decompressor = zlib.decompressobj(32 + zlib.MAX_WBITS)
        self.compressed = b""
        self.more_output = False
        self.more_input = True

    async def __call__(self) -> Message:
        if self.encoding not in ENCODINGS:
            raise ServiceError(
                Code.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Encoding {self.encoding}: send gzip, deflate, or a body without this header",
                {"Accept-Encoding": "gzip, deflate"},
            )
        if not (self.compressed or self.more_output):
            message = await self.receive()
            if message["type"] != "http.request":
                return message
            self.compressed, self.more_input = message["body"], message["more_body"]
        try:
            # zlib releases the interpreter lock.
            piece = await asyncio.to_thread(self.decompressor.decompress, self.compressed, PIECE)
        except zlib.error as error:
            raise self.damaged(str(error)) from error
        self.compressed = self.decompressor.unconsumed_tail
        if self.decompressor.unused_data:
            raise self.damaged("there are bytes after its end")
        self.more_output = len(piece) == PIECE and not self.decompressor.eof
        more = self.more_input or bool(self.compressed) or self.more_output
        if not more and not self.decompressor.eof:
            raise self.damaged("it is cut off")
        return {"type": "http.request", "body": piece, "more_body": more}

    def damaged(self, reason: str) -> ServiceError:
        return ServiceError(Code.BAD_REQUEST, f"the body cannot be decompressed as {self.encoding}: {reason}")
