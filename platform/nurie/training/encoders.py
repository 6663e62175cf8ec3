"""Training of the small image encoder and tagger on the built-in characters.

The encoders are frozen afterwards, and their tokens are all that the colorizer knows of a
reference. So the tokens are trained to say, of each place, what is there and which colours it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers.utils import logging as transformers_logging

from nurie.config.train import OptimizerConfig
from nurie.data.characters import ROLES
from nurie.data.tags import all_tags
from nurie.models.image_encoder import build_image_encoder, image_tokens, preprocess, resize
from nurie.models.tagger_network import TaggerNetwork
from nurie.training.components import bfloat16_where_fast, progress_steps
from nurie.training.encoder_report import encoder_report
from nurie.training.encoder_targets import EncoderBatch, encoder_batch
from nurie.training.learning_rate import learning_rate
from nurie.training.optimizer import MuonAdamW
from nurie.training.pictures import NUM_CLASSES, PicturePool, held_out_pictures
from nurie.training.tagger_export import export_tagger

if TYPE_CHECKING:
    from pathlib import Path

    from nurie.config.model import ReferenceConfig
    from nurie.config.train import EncodersTrainConfig

_WARMUP_STEPS = 50
_COLOUR_WEIGHTS = {"cell_colours": 4.0, "role_colours": 4.0, "palettes": 10.0}
_TAG_WEIGHT = 10.0
_RENEWED_SHARE = 0.2
_REPORT_EVERY = 500
_HELD_OUT_PICTURES = 256


class EncoderTrainee(nn.Module):
    """Both encoders with the linear heads that exist during training only."""

    def __init__(self, config: ReferenceConfig) -> None:
        """Make fresh encoders and heads of the preset's sizes."""
        super().__init__()
        self.config = config
        self.side = config.image_size // config.patch_size
        width = config.image_token_dim
        self.encoder = build_image_encoder(config)
        self.tagger = TaggerNetwork(len(all_tags()), config.tagger_token_dim)
        self.shares = nn.Linear(width, NUM_CLASSES)
        self.cell_colours = nn.Linear(width, 3)
        self.role_colours = nn.Linear(width, 3)
        self.palettes = nn.Linear(2 * width, len(ROLES) * 3)
        self.tagger_shares = nn.Linear(config.tagger_token_dim, NUM_CLASSES)

    def forward(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """Predict every target of :class:`EncoderBatch`; shares and tags as logits.

        Args:
            images: sRGB, uint8 [B, H, W, 3].
        """
        tokens = image_tokens(self.encoder, preprocess(images, self.config.image_size))
        places = tokens[:, 1:]
        whole = torch.cat([tokens[:, 0], places.mean(1)], dim=1)
        tagger_tokens = self.tagger.tokens(self._tagger_input(images))
        return {
            "shares": self.shares(places),
            "cell_colours": self.cell_colours(places),
            "role_colours": self.role_colours(places),
            "palettes": self.palettes(whole).unflatten(1, (len(ROLES), 3)),
            "tagger_shares": self.tagger_shares(tagger_tokens),
            "tags": self.tagger.logits(tagger_tokens),
        }

    def _tagger_input(self, images: np.ndarray) -> torch.Tensor:
        pixels = resize(images, self.config.tagger_image_size) * 255
        return pixels.flip(1).permute(0, 2, 3, 1)


def train_encoders(config: EncodersTrainConfig) -> Path:
    """Train the preset's image encoder and tagger and save them.

    Args:
        config: The run.

    Returns:
        ``config.output``, now with ``image_encoder/`` and ``tagger/``.
    """
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    transformers_logging.disable_progress_bar()  # it would break our own
    trainee = EncoderTrainee(config.model.reference).to(memory_format=torch.channels_last)
    optimizer = MuonAdamW(trainee, config.learning_rate)
    schedule = OptimizerConfig(
        learning_rate=config.learning_rate, schedule="cosine", warmup_steps=_WARMUP_STEPS
    )
    size = config.model.image_size
    renewed = max(1, round(config.batch_size * _RENEWED_SHARE))
    pool = PicturePool(size, config.seed, renewed=renewed)
    held_out = encoder_batch(
        held_out_pictures(_HELD_OUT_PICTURES, size, config.seed), trainee.side, rng=None
    )
    rng = np.random.default_rng(config.seed)
    for step, bar in progress_steps("encoders", 0, config.steps):
        batch = encoder_batch(pool.choose(config.batch_size), trainee.side, rng)
        with bfloat16_where_fast():
            predicted = trainee(batch.images)
        encoder_loss(predicted, batch).backward()
        optimizer.step(learning_rate(schedule, step, config.steps))
        if (step + 1) % _REPORT_EVERY == 0 and step + 1 < config.steps:
            _save(trainee, held_out, config)
            bar.print(f"step {step + 1}: {encoder_report(trainee, held_out).summary()}")
    _save(trainee, held_out, config)
    Console().print(encoder_report(trainee, held_out).table())
    return config.output


def encoder_loss(predicted: dict[str, torch.Tensor], batch: EncoderBatch) -> torch.Tensor:
    """Sum of all losses of a batch."""
    loss = _share_loss(predicted["shares"], batch.shares)
    loss = loss + _share_loss(predicted["tagger_shares"], batch.shares)
    for name, weight in _COLOUR_WEIGHTS.items():
        known, wanted = _known(predicted[name], getattr(batch, name))
        loss = loss + weight * nn.functional.mse_loss(known, wanted)
    logits, tags = _known(predicted["tags"], batch.tags)
    # The mean runs over many tags of which few apply, so it is small.
    return loss + _TAG_WEIGHT * nn.functional.binary_cross_entropy_with_logits(logits, tags)


def _share_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    known = ~shares[..., 0].isnan()
    return nn.functional.cross_entropy(logits[known].float(), shares[known])


def _known(predicted: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    known = ~wanted.isnan()
    return predicted[known].float(), wanted[known]


@torch.no_grad()
def _save(trainee: EncoderTrainee, held_out: EncoderBatch, config: EncodersTrainConfig) -> None:
    """Save both encoders; the image tokens leave with a mean square of one."""
    encoder, reference = trainee.encoder, config.model.reference
    tokens = image_tokens(encoder, preprocess(held_out.images, reference.image_size))
    scale = tokens.square().mean().sqrt()
    trained = encoder.visual_projection.weight.clone()
    encoder.visual_projection.weight /= scale
    encoder.save_pretrained(config.output / "image_encoder")
    encoder.visual_projection.weight.copy_(trained)
    export_tagger(
        trainee.tagger, reference.tagger_image_size, held_out.tags, config.output / "tagger"
    )
