"""The Ray Data job of an evaluation: tasks in, scored tasks in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import ray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nurie.config.evaluate import EvaluateConfig, ResultsConfig
from nurie.data.png import encode_png
from nurie.evaluation.tasks import Task
from nurie.tracking.store import tracking_uri
from nurie_pipelines.cluster import connect
from nurie_pipelines.evaluate.actor import MADE_SCHEMA, SCORED_SCHEMA, Colorize, Score
from nurie_pipelines.evaluate.manifest import ManifestSource
from nurie_pipelines.evaluate.store import ResultStore

_MAX_BLOCKS = 1000


def colour_and_score(
    config: EvaluateConfig, model: Path, tasks: Sequence[Task], store: ResultStore
) -> None:
    """Make and score what the store lacks; actors that colour stream into actors that measure."""
    missing = _missing(tasks, store)
    if not missing:
        return
    groups = _groups(missing, config.batch_size)
    made = _dataset(
        [{"tasks": [task.to_json() for task in group]} for group in groups]
    ).map_batches(
        Colorize,
        fn_constructor_kwargs={
            "config": config,
            "model": model,
            "tracking_uri": tracking_uri(config.tracking.uri),
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, len(groups))),
        num_cpus=0 if config.use_gpu else 1,
        num_gpus=1 if config.use_gpu else 0,
    )
    _score(made, config, config.shards, True, store, tasks, missing, -(-config.num_actors // 2))


def score_results(config: ResultsConfig, tasks: Sequence[Task], store: ResultStore) -> None:
    """Score pictures made elsewhere that the store lacks."""
    missing = _missing(tasks, store)
    if not missing:
        return
    made = _dataset([{"task": task.to_json()} for task in missing]).map_batches(
        partial(load_results, folder=config.results),
        batch_size=16,
        batch_format="pyarrow",
    )
    _score(made, config, config.results, False, store, tasks, missing, config.num_actors)


def load_results(batch: pa.Table, folder: Path) -> pa.Table:
    """Read the pictures of manifest entries; returns a table of ``MADE_SCHEMA``."""
    source = ManifestSource(folder)
    rows = [
        {"task": text, "pictures": [encode_png(source.result(Task.from_json(text)))]}
        for text in batch["task"].to_pylist()
    ]
    return pa.Table.from_pylist(rows, MADE_SCHEMA)


def _dataset(items: list[dict]) -> ray.data.Dataset:
    connect()
    return ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS))


def _score(
    made: ray.data.Dataset,
    config: EvaluateConfig | ResultsConfig,
    source: Path | str,
    from_shards: bool,
    store: ResultStore,
    tasks: Sequence[Task],
    missing: Sequence[Task],
    num_actors: int,
) -> None:
    scored = made.map_batches(
        Score,
        fn_constructor_kwargs={
            "source": source,
            "networks": config.networks,
            "from_shards": from_shards,
        },
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(missing))),
        num_cpus=1,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        done = len(tasks) - len(missing)
        bar = progress.add_task("evaluating", total=len(tasks), completed=done)
        for count in store.add(_tables(scored)):
            progress.advance(bar, count)


def _tables(scored: ray.data.Dataset) -> Iterator[pa.Table]:
    batches: Iterable = scored.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in batches:
        yield table.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)


def _missing(tasks: Sequence[Task], store: ResultStore) -> list[Task]:
    done = store.keys()
    return [task for task in tasks if task.key not in done]


def _groups(tasks: Sequence[Task], num_pictures: int) -> list[list[Task]]:
    """Runs of tasks of one system with about so many pictures together."""
    groups: list[list[Task]] = []
    size, system = 0, ""
    for task in tasks:
        if task.system != system or size >= num_pictures:
            groups.append([])
            size, system = 0, task.system
        groups[-1].append(task)
        size += max(1, len(task.reference_ids))
    return groups
