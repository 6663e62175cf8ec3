"""Write a trained tagger as published ones come: an ONNX graph and a table of tags."""

from __future__ import annotations

import csv
import warnings
from typing import TYPE_CHECKING

import torch

from nurie.data.tags import all_tags

if TYPE_CHECKING:
    from pathlib import Path

    from nurie.models.tagger_network import TaggerNetwork

_OPSET = 18
_GENERAL_CATEGORY = 0


def export_tagger(network: TaggerNetwork, size: int, tags: torch.Tensor, folder: Path) -> None:
    """Write ``model.onnx`` and ``selected_tags.csv``.

    Args:
        network: The trained tagger.
        size: Side of its pictures in pixels.
        tags: Sample of the tags, pictures x tags; gives the ``count`` column.
        folder: Where to; made if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, size, size, 3)
    with warnings.catch_warnings():
        # The exporter without extra run-time packages is called legacy, with a warning.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.eval(),
            (example,),
            str(folder / "model.onnx"),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["scores"],
            dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}},
        )
    network.train()
    with open(folder / "selected_tags.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tag_id", "name", "category", "count"])
        counts = tags.sum(0).int().tolist()
        for number, (tag, count) in enumerate(zip(all_tags(), counts, strict=True)):
            writer.writerow([number, tag, _GENERAL_CATEGORY, count])
