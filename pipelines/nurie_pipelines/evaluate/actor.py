"""The Ray actors of an evaluation: one makes pictures, the other scores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from nurie.config.evaluate import EvaluateConfig, GramMapsConfig, NetworksConfig
from nurie.data.png import decode_png, encode_png
from nurie.evaluation.controlnet import CONTROLNET, ControlNetPeer
from nurie.evaluation.networks import Networks
from nurie.evaluation.peers import PEERS
from nurie.evaluation.tasks import GRAM, MODEL, Order, ShardSource, Source, Task, score
from nurie_pipelines.evaluate.manifest import ManifestSource

MADE_SCHEMA = pa.schema([("task", pa.string()), ("pictures", pa.list_(pa.binary()))])
"""Tasks as JSON, and the PNGs that were made for them."""

SCORED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *MADE_SCHEMA,
        ("style", pa.string()),
        ("metrics", pa.string()),
        ("features", pa.list_(pa.float32())),
        ("truth_features", pa.list_(pa.float32())),
    ]
)
"""The same with metrics as JSON, and with features for KID and FID where a network makes them."""


class Colorize:
    """Makes the pictures of tasks, in batches of one size.

    Args:
        config: The evaluation.
        model: Model folder, verified by the driver.
        tracking_uri: The MLflow store, a SQLite path in it absolute. On a node that does not see
            the driver's disk the model is resolved again, from the registry.
    """

    def __init__(self, config: EvaluateConfig, model: Path, tracking_uri: str) -> None:
        from nurie.inference.pipeline import ColorizationPipeline

        if not model.is_dir():
            from nurie.tracking.registry import resolve_model

            model = resolve_model(config.model, tracking_uri)
        self.pipeline = ColorizationPipeline.from_pretrained(str(model))
        self.device = "cuda" if config.use_gpu else "cpu"
        self.pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = {
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
        }
        self.config = config
        self.controlnet: ControlNetPeer | None = None  # Opened by the actor that needs it.
        self.source = ShardSource(config.shards)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make the pictures of groups of tasks.

        Args:
            batch: Column ``tasks``: lists of tasks as JSON.

        Returns:
            A table of ``MADE_SCHEMA``.
        """
        tasks = [Task.from_json(text) for group in batch["tasks"].to_pylist() for text in group]
        orders = [self.source.orders(task) for task in tasks]
        made = self._make(tasks, orders)
        rows = [
            {"task": task.to_json(), "pictures": [encode_png(picture) for picture in pictures]}
            for task, pictures in zip(tasks, made, strict=True)
        ]
        return pa.Table.from_pylist(rows, MADE_SCHEMA)

    def _make(self, tasks: Sequence[Task], orders: Sequence[list[Order]]) -> list[list[np.ndarray]]:
        """The pictures of every task; the model's go through it together."""
        wanted = [
            (number, place, order)
            for number, task in enumerate(tasks)
            if task.system == MODEL and task.protocol != GRAM
            for place, order in enumerate(orders[number])
        ]
        coloured = dict(
            zip(
                [(number, place) for number, place, _ in wanted],
                self._colour([order for _, _, order in wanted]),
                strict=True,
            )
        )
        made = []
        for number, task in enumerate(tasks):
            if task.protocol == GRAM:
                assert self.config.gram_maps is not None
                made.append(self._gram_pictures(orders[number], self.config.gram_maps))
            elif task.system == MODEL:
                made.append([coloured[number, place] for place in range(len(orders[number]))])
            else:
                made.append([self._peer(task.system, order) for order in orders[number]])
        return made

    def _peer(self, system: str, order: Order) -> np.ndarray:
        if system != CONTROLNET:
            return PEERS[system](order.sample.sketch, order.reference.image)
        if self.controlnet is None:
            assert self.config.controlnet is not None
            self.controlnet = ControlNetPeer(self.config.controlnet, self.device)
        return self.controlnet(order.sample.sketch, order.reference.image, order.seed)

    def _colour(self, orders: Sequence[Order]) -> list[np.ndarray]:
        """Pictures in the orders' order; those of one call have one size."""
        done: dict[int, np.ndarray] = {}
        size = self.config.batch_size
        sizes = [order.sample.sketch.shape for order in orders]
        by_size = sorted(range(len(orders)), key=sizes.__getitem__)
        for _, group in groupby(by_size, key=sizes.__getitem__):
            indices = list(group)
            for first in range(0, len(indices), size):
                part = indices[first : first + size]
                done.update(zip(part, self._call([orders[i] for i in part]), strict=True))
        return [done[i] for i in range(len(orders))]

    def _call(self, orders: Sequence[Order]) -> list[np.ndarray]:
        height, width = orders[0].sample.sketch.shape
        output = self.pipeline(
            sketch=[Image.fromarray(order.sample.sketch) for order in orders],
            reference=[Image.fromarray(order.reference.image) for order in orders],
            seed=[order.seed for order in orders],
            height=height,
            width=width,
            # What the model makes is measured, not the sketch's own lines over it.
            line_overlay=0.0,
            **self.settings,
        )
        return [np.asarray(image.convert("RGB")) for image in output.images]

    def _gram_pictures(self, orders: Sequence[Order], config: GramMapsConfig) -> list[np.ndarray]:
        """For every reference the result, and a heat map per block, at the last step."""
        from nurie.evaluation.gram_maps import captured_blocks, draw_map, gram_blocks, query_row

        blocks = gram_blocks(self.pipeline.unet, config.blocks)
        with captured_blocks(self.pipeline.unet, blocks) as calls:
            pictures = self._call(orders)
        height, width = orders[0].sample.sketch.shape
        drawn = []
        for number, (order, picture) in enumerate(zip(orders, pictures, strict=True)):
            rows = [
                query_row(calls[-1][block][number].cpu(), width / height, config.query)
                for block in blocks
            ]
            maps = [draw_map(row, order.sample.sketch, config.query) for row in rows]
            drawn += [picture, *maps]
        return drawn


class Score:
    """Measures made pictures.

    Args:
        source: Data set folder, or the folder of results made elsewhere (those have a manifest).
        networks: Networks for metrics that need one.
    """

    def __init__(self, source: Path | str, networks: NetworksConfig, from_shards: bool) -> None:
        self.source: Source = ShardSource(source) if from_shards else ManifestSource(Path(source))
        self.networks = Networks(networks)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Measure a table of ``MADE_SCHEMA``; returns one of ``SCORED_SCHEMA``."""
        return pa.Table.from_pylist([self._score(row) for row in batch.to_pylist()], SCORED_SCHEMA)

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        task = Task.from_json(row["task"])
        orders = self.source.orders(task)
        pictures = [decode_png(data, 3) for data in row["pictures"]]
        metrics = score(task, orders, pictures)
        features = truth_features = None
        if len(pictures) == 1:
            sample, reference = orders[0].sample, orders[0].reference
            metrics |= self.networks.measure(pictures[0], reference.image, sample.image)
            if self.networks.features is not None and sample.image is not None:
                features = self.networks.features(pictures[0])
                truth_features = self.networks.features(sample.image)
        return row | {
            "key": task.key,
            "style": orders[0].sample.style,
            "metrics": json.dumps(metrics),
            "features": features,
            "truth_features": truth_features,
        }
