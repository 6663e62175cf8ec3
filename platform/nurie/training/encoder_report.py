"""How much the small encoders know of characters they never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from nurie.data.characters import ROLES

if TYPE_CHECKING:
    from nurie.training.encoder_targets import EncoderBatch
    from nurie.training.encoders import EncoderTrainee

_TAG_THRESHOLD = 0.35
_MIN_SAMPLES = 20
_MIN_DEVIATION = 0.1


@dataclass(frozen=True)
class EncoderReport:
    """Held-out quality.

    Attributes:
        share_error: Wrongly assigned share of a cell, by the image encoder (0: none, 1: all).
        tagger_share_error: The same, by the tagger's feature map.
        cell_colour_r2: Explained variance of the mean colour of cells.
        role_colour_r2: Explained variance of the colour of a cell's main role.
        palette_r2: Explained variance of the whole picture's colour, by role; roles whose colour
            hardly varies are left out.
        tag_f1: F1 over all tags and pictures at threshold 0.35.
    """

    share_error: float
    tagger_share_error: float
    cell_colour_r2: float
    role_colour_r2: float
    palette_r2: dict[str, float]
    tag_f1: float

    def summary(self) -> str:
        """One line of the most important numbers."""
        return (
            f"share error {self.share_error:.3f} (tagger {self.tagger_share_error:.3f}), "
            f"colour R2 of cells {self.cell_colour_r2:.3f}, of roles {self.role_colour_r2:.3f}, "
            f"of hair {self.palette_r2.get('hair', float('nan')):.3f}, tag F1 {self.tag_f1:.3f}"
        )

    def table(self) -> Table:
        """All numbers."""
        table = Table("measure", "held-out value")
        table.add_row("share error, image tokens", f"{self.share_error:.3f}")
        table.add_row("share error, tagger tokens", f"{self.tagger_share_error:.3f}")
        table.add_row("colour R2, cells", f"{self.cell_colour_r2:.3f}")
        table.add_row("colour R2, main role of a cell", f"{self.role_colour_r2:.3f}")
        for role, value in self.palette_r2.items():
            table.add_row(f"palette R2, {role}", f"{value:.3f}")
        table.add_row("tag F1", f"{self.tag_f1:.3f}")
        return table


@torch.no_grad()
def encoder_report(trainee: EncoderTrainee, batch: EncoderBatch) -> EncoderReport:
    """Measure the encoders, with their training heads, on a batch of unseen characters."""
    trainee.eval()
    predicted = trainee(batch.images)
    trainee.train()
    palettes = {
        role: _r2(predicted["palettes"][:, place], batch.palettes[:, place])
        for place, role in enumerate(ROLES)
        if _varies(batch.palettes[:, place])
    }
    return EncoderReport(
        share_error=_share_error(predicted["shares"], batch.shares),
        tagger_share_error=_share_error(predicted["tagger_shares"], batch.shares),
        cell_colour_r2=_r2(predicted["cell_colours"], batch.cell_colours),
        role_colour_r2=_r2(predicted["role_colours"], batch.role_colours),
        palette_r2=palettes,
        tag_f1=_f1(predicted["tags"].sigmoid() >= _TAG_THRESHOLD, batch.tags == 1),
    )


def _share_error(logits: torch.Tensor, shares: torch.Tensor) -> float:
    return ((logits.softmax(-1) - shares).abs().sum(-1) / 2).mean().item()


def _varies(colours: torch.Tensor) -> bool:
    known = colours[~colours[:, 0].isnan()]
    return len(known) >= _MIN_SAMPLES and known.std(0).mean().item() >= _MIN_DEVIATION


def _r2(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    """Explained share of the variance of what is known."""
    known = ~wanted[..., 0].isnan()
    predicted, wanted = predicted[known], wanted[known]
    total = (wanted - wanted.mean(0)).square().sum()
    return 1 - ((predicted - wanted).square().sum() / total).item()


def _f1(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    right = (predicted & wanted).sum().item()
    return 2 * right / max(1, predicted.sum().item() + wanted.sum().item())
