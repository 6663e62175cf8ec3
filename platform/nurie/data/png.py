"""PNG bytes of our own making: results and exports."""

from __future__ import annotations

import cv2
import numpy as np


def encode_png(image: np.ndarray) -> bytes:
    """Encode a picture, uint8 [H, W] (grey) or [H, W, 3] (RGB)."""
    picture = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", picture)
    assert done
    return data.tobytes()


def decode_png(data: bytes, channels: int) -> np.ndarray:
    """Decode what :func:`encode_png` wrote.

    Only for those; pictures from outside take ``nurie.inference.images.decode_image``.

    Args:
        data: The file's bytes.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [H, W, 3] or [H, W].

    Raises:
        ValueError: If the bytes are not a picture.
    """
    flag = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise ValueError(f"damaged PNG of {len(data)} bytes")
    return image
