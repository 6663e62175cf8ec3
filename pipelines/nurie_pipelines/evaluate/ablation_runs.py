"""Which trainings and evaluations an ablation has."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from nurie.checkpoints.manifest import write_atomically
from nurie.config.evaluate import AblationsConfig, EvaluateConfig, VariantConfig
from nurie.config.loader import load_config, read_yaml
from nurie.config.train import TrainConfig

SECONDS_FILE = "seconds.json"
"""Seconds that a run has taken, in its folder."""
_DONE_FILE = "measured.json"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the training.
        train: The training.
        evaluate: The evaluation of its model.
    """

    variant: str
    seed: int
    train: TrainConfig
    evaluate: EvaluateConfig

    def is_done(self) -> bool:
        """Whether it was measured with exactly these settings."""
        path = self.train.output / _DONE_FILE
        return path.is_file() and json.loads(path.read_text()) == self._settings()

    def mark_done(self) -> None:
        """Note that it is measured."""
        write_atomically(self.train.output / _DONE_FILE, json.dumps(self._settings()).encode())

    def _settings(self) -> dict[str, Any]:
        """All settings but those of tracking, which change no number."""
        return {
            "train": self.train.model_dump(mode="json", exclude={"tracking"}),
            "evaluate": self.evaluate.model_dump(mode="json", exclude={"tracking"}),
        }

    def seconds(self) -> float:
        """Seconds spent on it, over all starts of the command."""
        path = self.train.output / SECONDS_FILE
        return json.loads(path.read_text()) if path.is_file() else 0.0


def plan_runs(config: AblationsConfig) -> list[Run]:
    """All trainings and evaluations, seed by seed, so that an early stop leaves whole seeds.

    Raises:
        ConfigError: A setting of a variant is wrong.
    """
    return [
        _run(config, name, config.variants[name], seed)
        for seed in config.seeds
        for name in config.trained
    ]


def _run(config: AblationsConfig, name: str, variant: VariantConfig, seed: int) -> Run:
    folder = config.output / name / f"seed-{seed}"
    settings: dict[str, Any] = {}
    if variant.without_stages:
        stages = read_yaml(config.train).get("stages", [])
        settings["stages"] = [s for s in stages if s["kind"] not in variant.without_stages]
    # What all variants have is for stages that are left out of this one, too.
    left_out = tuple(f"stages.{kind}." for kind in variant.without_stages)
    common = {key: v for key, v in config.settings.items() if not key.startswith(left_out)}
    # One variant's settings may change what is inside of a value that all have.
    settings |= deepcopy(common | variant.settings)
    tracking = {"tracking.uri": config.tracking_uri, "tracking.experiment": config.name}
    settings |= tracking | {
        "tracking.registered_model": None,
        "name": f"{config.name}-{name}-{seed}",
        "output": str(folder),
        "seed": seed,
    }
    train = load_config(config.train, settings)
    measured = deepcopy(config.evaluate_settings) | tracking
    measured |= {"model": str(folder / "model"), "output": str(folder / "evaluation")}
    measured["name"] = settings["name"]
    evaluate = load_config(config.evaluate, measured)
    # A file of another kind lacks these settings, which the loader has said by now.
    assert isinstance(train, TrainConfig) and isinstance(evaluate, EvaluateConfig)
    return Run(name, seed, train, evaluate)
