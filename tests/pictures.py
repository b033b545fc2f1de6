"""Pictures for tests, made by hand: what is checked is the file, not what it shows."""

import struct
import zlib

from agentflow.messages import Image


def png(width: int = 2, height: int = 1, *, padding: int = 0) -> bytes:
    """Return a black PNG; `padding` bytes of a text chunk make it as large as is wanted."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + width) * height))
    chunks = (b"IHDR" + head, *([b"tEXt" + b"x" * padding] if padding else []), b"IDAT" + rows, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


PICTURE = Image("image/png", png())
