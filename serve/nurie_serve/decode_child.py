"""The process that decodes uploaded pictures: ``python -m nurie_serve.decode_child FD BYTES``.

Decoders are the one place where bytes of strangers meet code written in C. Here they meet it in a
process that holds no secret, may not open a file or a socket, start a process or write, and has
little memory and time. See ``nurie_serve.decoding`` for the other end.
"""

from __future__ import annotations

import json
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from nurie.inference.images import ImageError, decode_image

CPU_SECONDS = 10
"""Of one picture; past them the kernel ends the process."""


def main(descriptor: int, memory_bytes: int) -> None:
    """Decode one picture after the other until the other end is closed.

    Args:
        descriptor: Open end of a pipe, see :func:`answer` for what goes through it.
        memory_bytes: Address space of this process.
    """
    pipe = Connection(descriptor)
    Image.init()
    give_up_rights(memory_bytes)
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
            reply, pixels = answer(pipe.recv_bytes(), **request)
            pipe.send_bytes(json.dumps(reply).encode())
            pipe.send_bytes(pixels)
        except (EOFError, BrokenPipeError):
            return


def give_up_rights(memory_bytes: int) -> None:
    """Set the limits that hold for good."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_CORE,
    ):
        resource.setrlimit(limit, (0, 0))


def answer(data: bytes, field: str, max_pixels: int, max_side: int) -> tuple[dict[str, Any], bytes]:
    """Decode a picture and scale it down to the longest side that anybody needs.

    Returns:
        Mode and size with the pixels, or code and message of what is wrong with none.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, resource.RLIM_INFINITY))
    try:
        image = decode_image(data, field, max_pixels)
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        return {"mode": image.mode, "size": image.size}, image.tobytes()
    except ImageError as error:
        return {"code": error.code, "message": error.message}, b""
    except MemoryError:
        return {"code": "undecodable_image", "message": "decoding it takes too much memory"}, b""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
