"""Engines on two workers over gloo: the same steps, skipped steps, and state that fits them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.workers import on_workers
from nurie.checkpoints.sharded import WEIGHT
from nurie.config.train import BackboneStage, EngineConfig, GramConfig, OptimizerConfig
from nurie.training.batch import TrainBatch
from nurie.training.draws import row_generators
from nurie.training.ema import Ema
from nurie_pipelines.train.checkpoints import CheckpointStore, StageState, open_checkpoint
from nurie_pipelines.train.engines import Engine, build_engine
from tests.unit.test_stages import BATCH, stage_and_batch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ENGINES = {
    "torch": EngineConfig(kind="torch"),
    "zero-1": EngineConfig(zero_stage=1),
    "zero-2": EngineConfig(zero_stage=2),
    "zero-3": EngineConfig(zero_stage=3),
    "zero-2 offload": EngineConfig(zero_stage=2, offload_optimizer=True),
    "zero-3 offload": EngineConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True),
    "zero-3 recompute": EngineConfig(zero_stage=3, gradient_checkpointing=True),
    "torch channels_last": EngineConfig(kind="torch", channels_last=True),
    "torch bf16": EngineConfig(kind="torch", precision="bf16"),
    "zero-2 bf16": EngineConfig(zero_stage=2, precision="bf16"),
    "zero-3 bf16": EngineConfig(zero_stage=3, precision="bf16"),
}
WORLD = 2


def settings(kind: str = "adamw", accumulation: int = 1) -> BackboneStage:
    return BackboneStage(
        steps=10,
        batch_size=WORLD * BATCH * accumulation,
        gradient_accumulation_steps=accumulation,
        optimizer=OptimizerConfig(kind=kind, learning_rate=1e-3),  # type: ignore[arg-type]
        gram=GramConfig(start_fraction=0),
        ema_decay=0.9,
    )


class Trainer:
    """A stage on an engine, stepping over one fixed batch."""

    def __init__(
        self, config: EngineConfig, stage: BackboneStage, world: int, device: str = "cpu"
    ) -> None:
        module, batch = stage_and_batch(stage)
        self.batch = TrainBatch(
            **{k: None if v is None else v.to(device) for k, v in vars(batch).items()}
        )
        self.engine: Engine = build_engine(module.to(device), config, world)
        self.rank, self.world = (dist.get_rank() if dist.is_initialized() else 0), world
        self.ema = Ema(((f.name, f.values) for f in self.engine.fragments()), 0.9)
        self.accumulation = stage.gradient_accumulation_steps
        self.done = 0

    def step(self, factor: float = 1.0) -> tuple[float, bool]:
        """Loss of this worker's last micro-batch, and whether the weights have changed."""
        for micro in range(self.accumulation):
            # All workers see the same samples, so that any number of them takes the same step.
            generators = row_generators(0, f"{micro}", self.done, range(BATCH))
            out = self.engine.forward(self.batch, self.done, generators)
            self.engine.backward(out.total * factor)
            taken = self.engine.update()
        self.done += 1
        if taken:
            self.ema.update(((f.name, f.values) for f in self.engine.fragments()), self.done)
        return float(out.total.detach()), taken

    def save(self, folder: Path) -> bool:
        state = StageState("backbone", self.done, self.world)
        return CheckpointStore(folder, keep=5).save(state, self.engine, self.ema)

    def restore(self, folder: Path) -> None:
        state = CheckpointStore(folder, keep=5).restore(self.engine, self.ema)
        assert state is not None
        self.done = state.step

    def average(self) -> torch.Tensor:
        """A number that every fragment of the average goes into."""
        total = torch.stack([v.double().square().sum() for v in self.ema.shadow.values()]).sum()
        if self.world > 1:
            dist.all_reduce(total)
        return total


def _losses_of_all() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, config in ENGINES.items():
        trainer = Trainer(config, settings(), WORLD)
        found[name] = [trainer.step()[0] for _ in range(3)]
        found[f"{name} average"] = float(trainer.average())
    for name in ("torch", "zero-2", "zero-3"):
        trainer = Trainer(ENGINES[name], settings(accumulation=2), WORLD)
        found[f"{name} accumulated"] = [trainer.step()[0] for _ in range(3)]
    for name in ("torch", "zero-1", "zero-2", "zero-3", "zero-2 bf16"):
        trainer = Trainer(ENGINES[name], settings(), WORLD)
        trainer.step()
        before = (
            float(trainer.average()),
            {f.name: f.values.clone() for f in trainer.engine.fragments()},
        )
        _, taken = trainer.step(factor=float("inf"))
        same = all(torch.equal(f.values, before[1][f.name]) for f in trainer.engine.fragments())
        after = trainer.step()[1]
        found[f"{name} skips"] = (taken, same, float(trainer.average()) != before[0], after)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return on_workers(_losses_of_all, WORLD)


@pytest.mark.parametrize("name", list(ENGINES))
def test_every_engine_takes_the_same_steps(found: dict[str, Any], name: str) -> None:
    tolerance = 0.02 if "bf16" in name else 1e-5
    assert found[name] == pytest.approx(found["torch"], rel=tolerance)
    average = found[f"{name} average"]
    assert average == pytest.approx(found["torch average"], rel=0.02 if "bf16" in name else 1e-4)


def test_accumulated_steps_are_the_same(found: dict[str, Any]) -> None:
    expected = found["torch accumulated"]
    assert found["zero-2 accumulated"] == pytest.approx(expected, rel=1e-5)
    assert found["zero-3 accumulated"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.fault
@pytest.mark.parametrize("name", ["torch", "zero-1", "zero-2", "zero-3", "zero-2 bf16"])
def test_a_loss_that_is_not_finite_changes_nothing(found: dict[str, Any], name: str) -> None:
    taken, same, later_changed, later_taken = found[f"{name} skips"]
    assert (taken, same, later_changed, later_taken) == (False, True, True, True)


def _save_everywhere(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("torch", "zero-2", "zero-3", "muon"):
        kind, config = ("muon", ENGINES["zero-2"]) if name == "muon" else ("adamw", ENGINES[name])
        trainer = Trainer(config, settings(kind), WORLD)
        trainer.step()
        trainer.step()
        assert trainer.save(folder / name)
        found[name] = trainer.step()[0], float(trainer.average())
        again = Trainer(config, settings(kind), WORLD)
        again.restore(folder / name)
        found[f"{name} again"] = again.step()[0], float(again.average())
        weights = zip(trainer.engine.fragments(), again.engine.fragments(), strict=True)
        found[f"{name} equal"] = all(torch.equal(a.values, b.values) for a, b in weights)
    for name, other in (("zero-2", "zero-3"), ("zero-3", "zero-2"), ("torch", "zero-3")):
        trainer = Trainer(ENGINES[other], settings(), WORLD)
        trainer.restore(folder / name)
        found[f"{name} to {other}"] = trainer.step()[0], float(trainer.average())
    return found


@pytest.mark.fault
def test_state_fits_every_engine_and_number_of_workers(tmp_path: Path) -> None:
    """Bit by bit on the same engine; within rounding on another one, or alone."""
    found = on_workers(_save_everywhere, WORLD, tmp_path)
    for name in ("torch", "zero-2", "zero-3", "muon"):
        assert found[f"{name} again"] == found[name]
        assert found[f"{name} equal"]
    for name, other in (("zero-2", "zero-3"), ("zero-3", "zero-2"), ("torch", "zero-3")):
        assert found[f"{name} to {other}"] == pytest.approx(found[name], rel=1e-5)
    for name, kind in (("zero-3", "adamw"), ("zero-2", "adamw"), ("muon", "muon")):
        trainer = Trainer(EngineConfig(kind="torch", num_workers=1), settings(kind), 1)
        trainer.restore(tmp_path / name)
        loss, _ = trainer.step()
        tolerance = 2e-3 if kind == "muon" else 1e-5
        assert loss == pytest.approx(found[name][0], rel=tolerance)
    with open_checkpoint(tmp_path / "zero-2" / "step-000002") as shards:
        names = {name for name, _ in trainer.engine.stage.trained_parameters()}
        assert shards.names(WEIGHT) == names
