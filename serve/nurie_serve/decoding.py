"""Decoding of uploaded pictures in a pool of limited child processes.

A picture that makes a decoder crash, hang or eat memory costs its own request and one child. What
comes back is checked pixels: nothing of a child is unpickled or otherwise trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe

from PIL import Image

from nurie.inference.images import ImageError

logger = logging.getLogger(__name__)

WALL_SECONDS = 30.0
"""A child that has not answered by then is ended; its own limit is CPU time."""
PICTURES_PER_CHILD = 256
_BASE_BYTES = 512 * 2**20
_BYTES_PER_PIXEL = 32
_MAX_HEADER = 4096
_MODES = {"RGB": 3, "RGBA": 4}


class DecoderPool:
    """Warm child processes; may be used from several threads.

    Args:
        size: Pictures decoded at once.
        max_pixels: The largest picture that is ever asked for; sets the memory of a child.
    """

    def __init__(self, size: int, max_pixels: int) -> None:
        self._memory_bytes = _BASE_BYTES + _BYTES_PER_PIXEL * max_pixels
        self._children: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(size):
            self._children.put(None)

    def decode(self, data: bytes, field: str, max_pixels: int, max_side: int) -> Image.Image:
        """Decode one untrusted picture, as ``nurie.inference.images.decode_image`` does.

        Args:
            data: The file.
            field: Name of the input, for error messages.
            max_pixels: Largest width times height.
            max_side: A larger picture is scaled down to this longest side.

        Raises:
            ImageError: If the picture cannot be used, or decoding it crashed or took too long.
        """
        with self._child() as child:
            reply = child.decode(data, field, max_pixels, max_side)
        if reply is None:
            digest = hashlib.sha256(data).hexdigest()
            logger.warning("decoding %s (%d bytes, sha256 %s) failed", field, len(data), digest)
            raise ImageError(
                field, "undecodable_image", "decoding it crashed or took too long; save it anew"
            )
        if isinstance(reply, ImageError):
            raise reply
        return reply

    def close(self) -> None:
        """End the children that do nothing."""
        for _ in range(self._children.qsize()):
            child = self._children.get()
            if child is not None:
                child.end()
            self._children.put(None)

    @contextmanager
    def _child(self) -> Iterator[_Child]:
        """A child that lives; it goes back to the pool unless it is used up."""
        child = self._children.get()
        try:
            if child is None or not child.usable:
                child = _Child(self._memory_bytes)
            yield child
        finally:
            if child is not None and not child.usable:
                child.end()
                child = None
            self._children.put(child)


class _Child:
    """One process and this end of its pipe."""

    def __init__(self, memory_bytes: int) -> None:
        self._pipe, theirs = Pipe()
        words = ["-m", "nurie_serve.decode_child", str(theirs.fileno()), str(memory_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, *words],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # No secrets; one thread each for libraries that reserve memory per thread.
            env={
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        theirs.close()
        self._left = PICTURES_PER_CHILD

    @property
    def usable(self) -> bool:
        return self._left > 0 and self._process.poll() is None

    def decode(
        self, data: bytes, field: str, max_pixels: int, max_side: int
    ) -> Image.Image | ImageError | None:
        """The picture, what is wrong with it, or None if the child did not answer."""
        self._left -= 1
        request = {"field": field, "max_pixels": max_pixels, "max_side": max_side}
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
            self._pipe.send_bytes(data)
            reply = json.loads(self._receive(_MAX_HEADER))
            pixels = self._receive(max(_MODES.values()) * max_side**2)
            if "code" in reply:
                return ImageError(field, str(reply["code"]), str(reply["message"]))
            width, height = reply["size"]
            if (
                reply["mode"] not in _MODES
                or min(width, height) < 1
                or max(reply["size"]) > max_side
            ):
                raise ValueError(f"the child answered {reply}")
            return Image.frombytes(reply["mode"], (width, height), pixels)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            logger.warning("a decoding process failed: %r", error)
            self._left = 0
            return None

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, max_bytes: int) -> bytes:
        if not self._pipe.poll(WALL_SECONDS):
            raise TimeoutError(f"no answer within {WALL_SECONDS:g} seconds")
        return self._pipe.recv_bytes(max_bytes)
