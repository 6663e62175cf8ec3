"""Bad steps: what is a spike, and what follows."""

from __future__ import annotations

import pytest

from nurie.config.train import GuardConfig
from nurie_pipelines.train.guard import Answer, LossGuard

CONFIG = GuardConfig(max_loss_ratio=3, window=4, roll_back_after=2, max_skipped_steps=3)


def trained(*losses: float) -> LossGuard:
    guard = LossGuard(CONFIG)
    for loss in losses:
        guard.record(loss, good=True)
    return guard


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_from_the_first_step(loss: float) -> None:
    assert not LossGuard(CONFIG).accepts(loss)


def test_spikes_are_judged_by_the_last_good_steps() -> None:
    assert trained(1, 1, 1).accepts(100)
    guard = trained(50, 1, 1, 2, 1)
    assert guard.accepts(3)
    assert not guard.accepts(3.1)
    guard.record(3.1, good=False)
    assert guard.accepts(3)
    assert trained(50, 50, 1, 1, 50, 50).accepts(75)


def test_bad_steps_roll_back_and_end_the_stage() -> None:
    guard = trained(1)
    answers = [guard.record(9, good=good) for good in (False, True, False, False, True)]
    assert answers == [
        Answer.GO_ON,
        Answer.GO_ON,
        Answer.GO_ON,
        Answer.ROLL_BACK,
        Answer.GO_ON,
    ]
    assert guard.record(9, good=False) is Answer.STOP


def test_a_resumed_guard_judges_alike() -> None:
    guard = trained(1, 2, 3, 4, 5)
    guard.record(9, good=False)
    other = LossGuard(CONFIG)
    other.load(guard.state())
    assert other == guard
