"""Where a running stage stands: its checkpoints, its average, and the answer to bad steps."""

from __future__ import annotations

import torch
import torch.distributed as dist

from nurie.training.ema import Ema
from nurie_pipelines.train.checkpoints import StageState
from nurie_pipelines.train.engines import Engine
from nurie_pipelines.train.guard import Answer, LossGuard, SkippedStep, note_skipped
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.step import StepResult, Workers


class StageProgress:
    """Keeps what a stage has reached; every worker holds one.

    Args:
        job: The stage.
        engine: Its engine.
        workers: This worker among all.
        log: Where the cost of checkpoints goes.
    """

    def __init__(self, job: StageJob, engine: Engine, workers: Workers, log: StepLog) -> None:
        self._job, self._engine, self._workers, self._log = job, engine, workers, log
        self._store = job.checkpoints()
        self.guard = LossGuard(job.config.guard)
        self.step = 0
        decay = job.settings.ema_decay
        self.ema = Ema(self._weights(), decay) if decay else None

    def restore(self) -> int:
        """Goes back to the newest whole checkpoint; returns the steps that are done."""
        state = self._store.restore(self._engine, self.ema)
        if state is not None:
            self.guard.load(state.guard)
            self.step = state.step
        return self.step

    def after_step(self, finished: int, result: StepResult) -> bool:
        """Updates average and checkpoints; skips, rolls back or stops after a bad step.

        Args:
            finished: Steps that are done now.
            result: The last of them.

        Returns:
            Whether the stage goes on.
        """
        self.step = finished
        # Half precision looks for its scale by steps that overflow.
        looking = result.accepted and self._job.config.engine.precision == "fp16"
        good = result.taken or looking
        answer = self.guard.record(result.loss, good=good)
        if result.taken and self.ema is not None:
            self.ema.update(self._weights(), finished - 1)
        if not good:
            self._note(finished, result)
        if answer is Answer.STOP:
            self._job.stop_for_good(self._too_many(finished))
            return False
        if answer is Answer.ROLL_BACK:
            self._roll_back(finished)
        last = finished == self._job.settings.steps
        if last or result.stop or finished % self._job.config.checkpoint_every == 0:
            saved = self.save(finished)
            if not saved and (last or self._job.config.stop_without_checkpoint):
                reason = f"the checkpoint of step {finished} could not be written; free some space"
                self._job.stop_for_good(f"{reason}, then the same command continues")
                return False
        return not result.stop

    def save(self, finished: int) -> bool:
        """Writes a checkpoint; all workers call it. False if it could not be written."""
        start = self._job.start_from
        state = StageState(
            self._job.kind,
            finished,
            self._workers.world,
            None if start is None else str(start),
            guard=self.guard.state(),
        )
        with self._log.checkpoint(finished):
            return self._store.save(state, self._engine, self.ema)

    def _roll_back(self, finished: int) -> None:
        """Takes the newest checkpoint's weights; the data go on, or the same steps would come."""
        state = self._store.restore(self._engine, self.ema)
        if self._workers.rank == 0:
            to = "nothing: there is no checkpoint" if state is None else f"step {state.step}"
            self._store.say(f"rolled the weights of step {finished} back to {to}")

    def _note(self, finished: int, result: StepResult) -> None:
        samples: list[list[str]] = [[] for _ in range(self._workers.world)]
        if self._workers.world > 1:
            dist.all_gather_object(samples, result.sample_ids)
        else:
            samples = [result.sample_ids]
        if self._workers.rank == 0:
            flat = [name for part in samples for name in part]
            note_skipped(self._job.folder, SkippedStep(finished, result.loss, flat))

    def _too_many(self, finished: int) -> str:
        limit = self._job.config.guard.max_skipped_steps
        return (
            f"step {finished} was the {self.guard.skipped}th with a loss that is not finite or a "
            f"spike, more than guard.max_skipped_steps {limit}; their samples are listed in "
            f"{self._job.folder / 'skipped.jsonl'}"
        )

    def _weights(self) -> list[tuple[str, torch.Tensor]]:
        return [(each.name, each.values) for each in self._engine.fragments()]
