"""Gram heat maps (the paper's figure 3): which places the denoiser takes for alike.

Row q of the Gram matrix of a transformer block's tokens says how alike every place is to place q. A
disentangled model gives the same map under its own and under an unrelated reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock

from nurie.models.unet import ColorizationUNet
from nurie.training.gram import gram_matrix


@contextmanager
def captured_blocks(unet: ColorizationUNet, blocks: Sequence[int]) -> Iterator[list[dict]]:
    """Collects the token outputs of transformer blocks, one dictionary per call of the denoiser."""
    calls: list[dict[int, torch.Tensor]] = []

    def ask(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"capture": blocks}

    def keep(module: Any, args: tuple, output: Any) -> None:
        calls.append(output.blocks)

    handles = [
        unet.register_forward_pre_hook(ask, with_kwargs=True),
        unet.register_forward_hook(keep),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def gram_blocks(unet: ColorizationUNet, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The wanted blocks, or the last ones at the lowest resolution of encoder and decoder.

    Raises:
        ValueError: There is no such block.
    """
    before, after = unet.num_blocks()
    if wanted is None:
        middle, lowest = (
            sum(isinstance(module, BasicTransformerBlock) for module in part.modules())
            for part in (unet.mid_block, unet.up_blocks[0])
        )
        return before - middle, before + lowest
    for block in wanted:
        if not 1 <= block <= before + after:
            raise ValueError(f"gram_maps.blocks: {block} is not in 1..{before + after}")
    return wanted


def query_row(tokens: torch.Tensor, aspect: float, query: tuple[float, float]) -> np.ndarray:
    """Likeness of every place to the query, float32 [h, w], -1..1.

    Args:
        tokens: A block's output for one picture, ``N x C``.
        aspect: Width of the picture over its height.
        query: The place asked for: x and y as shares of the picture.
    """
    width = round((len(tokens) * aspect) ** 0.5)
    height = len(tokens) // width
    column, row = (
        min(int(share * n), n - 1) for share, n in zip(query, (width, height), strict=True)
    )
    gram = gram_matrix(tokens.float()[None])[0]
    return gram[row * width + column].reshape(height, width).numpy()


def draw_map(row: np.ndarray, sketch: np.ndarray, query: tuple[float, float]) -> np.ndarray:
    """The likeness as colours under the sketch, with the query marked, uint8 [H, W, 3].

    The scale is fixed: dark is no likeness (0 and less), light is the same (1).
    """
    height, width = sketch.shape
    levels = (row.clip(0, 1) * 255).astype(np.uint8)
    large = cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)
    colours = cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    shown = np.where(sketch[..., None] < 128, 0, colours).astype(np.uint8)
    centre = tuple(
        min(int(share * n), n - 1) for share, n in zip(query, (width, height), strict=True)
    )
    radius = max(2, width // 40)
    cv2.circle(shown, centre, radius + 1, (0, 0, 0), -1)
    cv2.circle(shown, centre, radius, (255, 60, 60), -1)
    return shown
