"""Names of the released checkpoint for modules of any size."""

from __future__ import annotations

import itertools

from torch import nn

from nurie.checkpoints import released_keys
from nurie.checkpoints.released_keys import map_released_key


def released_names(part: nn.Module, prefix: str, layers: int) -> dict[str, str]:
    """Our name -> released name, found by asking the mapping about every name that could be."""
    own = set(part.state_dict())
    inner = {n.split(".", 4)[4] for n in own if n.split(".")[2:3] == ["attentions"]}
    inner |= {n.split(".", 3)[3] for n in own if n.startswith("mid_block.attentions")}
    leaves = [f"{n}.{kind}" for n in released_keys._RESNET for kind in ("weight", "bias")]
    leaves += [f"{n}.{kind}" for n in ("op", "conv") for kind in ("weight", "bias")]
    names = [f"{n}.{kind}" for n in released_keys._FLAT for kind in ("weight", "bias")]
    for rest in [*leaves, *inner]:
        names += [f"middle_block.{slot}.{rest}" for slot in range(3)]
        blocks = itertools.product(("input_blocks", "output_blocks"), range(12), range(3))
        names += [f"{side}.{index}.{slot}.{rest}" for side, index, slot in blocks]
    names += [n for n in own if n.startswith("zero_layers")]
    found: dict[str, str] = {}
    for name in names:
        mapped = map_released_key(prefix + name, layers)
        if mapped is not None and mapped[1] in own:
            # An upsampler may stand in the second or third place; both are read.
            found.setdefault(mapped[1], prefix + name)
    return found
