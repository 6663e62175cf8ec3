"""``nurie ablate``: train and measure variants, and say what each part of the method is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from nurie.checkpoints.manifest import write_atomically
from nurie.config.evaluate import AblationsConfig
from nurie_pipelines.evaluate.ablation_report import report_ablations
from nurie_pipelines.evaluate.ablation_runs import SECONDS_FILE, Run, plan_runs
from nurie_pipelines.evaluate.shared import take_over


def ablate(config: AblationsConfig) -> dict[str, Any]:
    """Train and measure what is not done yet, then compare and write the tables.

    A stage that several variants have in common is trained once: ``shared.take_over``.

    Returns:
        The content of ``ablations.json``.

    Raises:
        ConfigError: A setting of a variant is wrong; found before anything is trained.
        ValueError: A folder belongs to a training with other settings.
    """
    from nurie_pipelines.evaluate.run import evaluate
    from nurie_pipelines.train.run import train

    runs = plan_runs(config)
    console = Console()
    for number, run in enumerate(runs):
        console.print(f"[bold]{run.variant}[/], seed {run.seed} ({number + 1} of {len(runs)})")
        if run.is_done():
            continue
        console.print(time_left(runs))
        with _timed(run):
            for kind, folder in take_over(run.train, [r.train for r in runs[:number]]).items():
                console.print(f"stage [bold]{kind}[/] is that of {folder}", soft_wrap=True)
            train(run.train)
            evaluate(run.evaluate)
        run.mark_done()
    return report_ablations(config, runs)


def time_left(runs: Sequence[Run]) -> str:
    """What is spent, and what is left by what the same variant took with another seed."""
    done = [run for run in runs if run.is_done()]
    spent = sum(run.seconds() for run in runs)
    if not done:
        return f"{_clock(spent)} spent"
    mean = sum(run.seconds() for run in done) / len(done)
    left = 0.0
    for run in runs:
        if not run.is_done():
            alike = [other.seconds() for other in done if other.variant == run.variant]
            usual = sum(alike) / len(alike) if alike else mean
            left += max(0.0, usual - run.seconds())
    return f"{_clock(spent)} spent, about {_clock(left)} left"


@contextmanager
def _timed(run: Run) -> Iterator[None]:
    """Adds the seconds inside to those of the run, also when it is interrupted."""
    before, start = run.seconds(), time.monotonic()
    try:
        yield
    finally:
        run.train.output.mkdir(parents=True, exist_ok=True)
        seconds = before + time.monotonic() - start
        write_atomically(run.train.output / SECONDS_FILE, json.dumps(seconds).encode())


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
