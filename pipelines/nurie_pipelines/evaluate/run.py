"""``nurie evaluate``: a model, or pictures made elsewhere, under three reference protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nurie.checkpoints.manifest import manifest_digest, weights_digest
from nurie.config.evaluate import EvaluateConfig, ResultsConfig
from nurie.data.data_folder import DataFolder
from nurie.data.manifest import MANIFEST_NAME, file_sha256
from nurie.data.shards import ShardReader
from nurie.evaluation.controlnet import CONTROLNET, controlnet_digest
from nurie.evaluation.networks import network_digests
from nurie.evaluation.pairs import PROTOCOLS, PairPlan, choose_pairs
from nurie.evaluation.report import Summary, compare
from nurie.evaluation.tasks import (
    GRAM,
    METRICS_VERSION,
    MODEL,
    SWAPS,
    ShardSource,
    Task,
    swap_tasks,
)
from nurie.tracking.registry import resolve_model
from nurie_pipelines.evaluate.cases import Cases
from nurie_pipelines.evaluate.job import colour_and_score, score_results
from nurie_pipelines.evaluate.manifest import (
    AS_GIVEN,
    ManifestSource,
    manifest_path,
    manifest_tasks,
    read_entries,
)
from nurie_pipelines.evaluate.outputs import (
    as_json,
    log_to_mlflow,
    mean_shape_change,
    mlflow_metrics,
    print_tables,
    summarize_rows,
    write_files,
)
from nurie_pipelines.evaluate.store import ResultStore, Row


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Colour test samples with right, same-palette and wrong references, and measure.

    Writes ``report.html``, ``metrics.md``, ``metrics.json``, ``contact_sheet.png`` and
    ``per_sample.parquet`` into ``config.output``, logs them to MLflow as run ``evaluate`` and
    prints the tables. The pictures stay in ``results``; an interrupted evaluation goes on there.

    Args:
        config: What to evaluate, and on what.

    Returns:
        The content of ``metrics.json``, plus ``run_id`` (None: MLflow did not answer).

    Raises:
        nurie.tracking.registry.RegistryError: No such model.
        nurie.checkpoints.manifest.CheckpointError: The model's files are damaged.
        nurie.data.manifest.ManifestError: The data set is unfinished or has no test split.
        nurie.evaluation.networks.NetworkError: A network is missing or of another form.
    """
    model = resolve_model(config.model, config.tracking.uri)
    reader = ShardReader(config.shards, "test")
    plan = choose_pairs(reader, config.num_samples, config.seed)
    tasks = _tasks(config, reader, plan)
    identity = {
        "weights_digest": weights_digest(model),
        "shards_digest": DataFolder(config.shards).sha256(MANIFEST_NAME),
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "seed": config.seed,
        "networks": network_digests(config.networks) | controlnet_digest(config.controlnet),
        "metrics_version": METRICS_VERSION,
    }
    settings = [
        config.disentanglement and config.disentanglement.num_references,
        config.gram_maps and config.gram_maps.model_dump(mode="json"),
    ]
    store = ResultStore(config.output)
    store.claim(identity | {"sets": settings})
    colour_and_score(config, model, tasks, store)
    rows = _rows(tasks, store)
    summary = summarize_rows(rows)
    report = {
        "model": config.model,
        "model_digest": manifest_digest(model),
        "shards": str(config.shards),
        **identity,
        "num_samples": len({pair.sample_id for pair in plan.pairs}),
        **as_json(summary, MODEL),
        "comparisons": compare(summary[MODEL]) | mean_shape_change(rows, store),
        "skipped": plan.skipped | _unswapped(config, tasks, plan),
    }
    cases = Cases(rows, store, ShardSource(config.shards))
    return _publish(config, report, summary, cases)


def evaluate_results(config: ResultsConfig) -> dict[str, Any]:
    """Measure pictures made elsewhere; writes, logs and returns what ``evaluate`` does.

    Raises:
        nurie_pipelines.evaluate.manifest.ResultsError: The manifest or a picture is wrong.
    """
    entries = read_entries(config.results)
    tasks = manifest_tasks(entries)
    identity = {
        "manifest_digest": file_sha256(manifest_path(config.results)),
        "networks": network_digests(config.networks),
        "metrics_version": METRICS_VERSION,
    }
    files = sorted(
        {getattr(entry, field) for entry in entries for field in ("sketch", "reference", "result")}
    )
    store = ResultStore(config.output)
    changed = [(config.results / name).stat().st_mtime_ns for name in files]
    store.claim(identity | {"results": str(config.results), "changed": max(changed)})
    score_results(config, tasks, store)
    rows = _rows(tasks, store)
    summary = summarize_rows(rows)
    main = MODEL if MODEL in summary else next(iter(summary))
    skipped = {}
    if any(entry.truth is None for entry in entries):
        count = sum(entry.truth is None for entry in entries)
        skipped["metrics against the truth"] = f"{count} of {len(entries)} results have none"
    if any(entry.protocol == AS_GIVEN for entry in entries):
        skipped["protocols"] = f"the manifest names none for some; they are `{AS_GIVEN}`"
    report = {
        "results": str(config.results),
        **identity,
        "num_samples": len({task.sample_id for task in tasks}),
        **as_json(summary, main),
        "comparisons": compare(summary[main]),
        "skipped": skipped,
    }
    return _publish(
        config, report, summary, Cases(rows, store, ManifestSource(config.results), main)
    )


def _tasks(config: EvaluateConfig, reader: ShardReader, plan: PairPlan) -> list[Task]:
    """Everything that is made and scored; the model's own first."""
    tasks = []
    made_with_weights = [CONTROLNET] if config.controlnet else []
    for system in (MODEL, *config.peers, *made_with_weights):
        tasks += [Task.of_pair(pair, system) for pair in plan.pairs]
        if config.disentanglement is not None:
            sizes = config.disentanglement
            tasks += swap_tasks(
                reader, plan.pairs, sizes.num_sketches, sizes.num_references, system
            )
    if config.gram_maps is not None:
        wrong = {pair.order: pair for pair in plan.pairs if pair.protocol == "wrong"}
        chosen = [wrong[order] for order in sorted(wrong)][: config.gram_maps.num_sketches]
        tasks += [
            Task(MODEL, GRAM, p.sample_id, (p.sample_id, p.reference_id), p.order, p.sketch, p.seed)
            for p in chosen
        ]
    return tasks


def _unswapped(config: EvaluateConfig, tasks: list[Task], plan: PairPlan) -> dict[str, str]:
    """Sketches of the disentanglement benchmark that have no references to swap."""
    if config.disentanglement is None:
        return {}
    wanted = len({p.order for p in plan.pairs if p.order < config.disentanglement.num_sketches})
    made = sum(task.system == MODEL and task.protocol == SWAPS for task in tasks)
    if made == wanted:
        return {}
    return {SWAPS: f"{wanted - made} of {wanted} sketches have fewer than 2 unrelated references"}


def _rows(tasks: list[Task], store: ResultStore) -> list[Row]:
    """Scored tasks, the model first, by sample and protocol, whatever order they were made in."""
    systems = list(dict.fromkeys(task.system for task in tasks))
    wanted = {task.key for task in tasks}

    def place(row: Row) -> tuple:
        task = row["task"]
        protocol = PROTOCOLS.index(task.protocol) if task.protocol in PROTOCOLS else len(PROTOCOLS)
        return systems.index(task.system), task.order, protocol, task.protocol

    # Two processes that evaluate into one folder may both have made a task.
    found = {row["key"]: row for row in store.rows() if row["key"] in wanted}
    return sorted(found.values(), key=place)


def _publish(
    config: EvaluateConfig | ResultsConfig,
    report: dict[str, Any],
    summary: Summary,
    cases: Cases,
) -> dict[str, Any]:
    write_files(config.output, report, summary, cases, config.sheet_rows)
    what = report.get("model") or report["results"]
    run_id = log_to_mlflow(
        config.tracking,
        f"{config.name or _name(what)}/evaluate",
        config.output,
        mlflow_metrics(report, summary),
        config.model_dump(mode="json", exclude={"tracking"}),
        {"stage": "evaluate"} | {name: report[name] for name in report if name.endswith("_digest")},
    )
    print_tables(f"{what} on {report['num_samples']} samples", report, summary, config.output)
    return report | {"run_id": run_id}


def _name(model: str) -> str:
    """What a model is called in a list of runs: ``nano`` of ``runs/nano/model``."""
    if model.startswith("models:/"):
        return model.removeprefix("models:/")
    folder = Path(model).absolute()
    return folder.parent.name if folder.name == "model" else folder.name
