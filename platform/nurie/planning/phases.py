"""Steps of a stage that compute the same."""

from __future__ import annotations

from nurie.config.train import DualBranchStage, Stage
from nurie.training.gram import gram_weight


def gram_phases(settings: Stage) -> list[tuple[str, int, int]]:
    """Steps that compute the same: name, number, and the first of them.

    Until the Gram loss has a weight, no misaligned branch is computed.
    """
    if not isinstance(settings, DualBranchStage):
        return [("", settings.steps, 0)]
    weights = [gram_weight(settings.gram, step, settings.steps) for step in range(settings.steps)]
    alone = sum(weight == 0 for weight in weights)
    phases = [("aligned branch", alone, 0), ("both branches", settings.steps - alone, alone)]
    return [phase for phase in phases if phase[1]]
