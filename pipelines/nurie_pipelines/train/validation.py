"""Loss on unseen samples, always the same ones with the same noise: curves that compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from nurie.config.train import BackgroundStage, DualBranchStage, StageBase
from nurie.data.buckets import Bucket, fit
from nurie.data.manifest import read_manifest
from nurie.data.pixels import decode_pixels
from nurie.data.schema import Row
from nurie.data.shards import ShardReader
from nurie.diffusion.process import add_noise, velocity
from nurie.training.batch import TrainBatch, make_batch
from nurie.training.draws import StepDraws
from nurie.training.stages import TrainingStage
from nurie_pipelines.data.encode import FrozenEncoders
from nurie_pipelines.train.job import StageJob

TIMESTEP_SHARES = (0.125, 0.375, 0.625, 0.875)
"""Places in the noise schedule at which every sample is measured."""
ROWS_PER_PASS = 8
_COLUMNS = (
    "sample_id",
    "image",
    "sketches",
    "mask",
    "original_area",
    "aesthetic_score",
    "mismatched_ids",
)


@dataclass(frozen=True)
class ValidationBatch:
    """Samples of one shape.

    Args:
        right: With their own pictures as references.
        wrong: With mismatched pictures.
        noise: One draw for each of ``TIMESTEP_SHARES``, ``T x B x C x h x w``.
    """

    right: TrainBatch
    wrong: TrainBatch
    noise: torch.Tensor


class FixedValidation:
    """Measures a stage on samples, noise and timesteps that no step and no seed changes.

    Nothing is dropped, augmented or weighted. The frozen encoders are loaded once, in this
    process, and let go when the samples are encoded.

    Args:
        job: The stage.
        device: Where its model is.
    """

    def __init__(self, job: StageJob, device: torch.device) -> None:
        self.job = job
        self.batches = list(_batches(job, device))

    @torch.no_grad()
    def measure(self, stage: TrainingStage) -> dict[str, float]:
        """Losses by metric name; the stage's model is whole on this worker.

        ``val/loss`` is the diffusion loss, ``val/loss_t125`` that at timestep 125,
        ``val/loss_wrong_reference`` what it is when the reference is another picture: the wider
        the gap, the more the model takes from its reference. ``val/gram_block_4`` is the stage's
        Gram loss.
        """
        sums: dict[str, float] = defaultdict(float)
        training = stage.training
        stage.eval()
        for batch in self.batches:
            for name, value in self._measure_batch(stage, batch):
                sums[name] += value * batch.right.size
        stage.train(training)
        count = sum(batch.right.size for batch in self.batches)
        return {f"val/{name}": total / count for name, total in sums.items()}

    def _measure_batch(
        self, stage: TrainingStage, batch: ValidationBatch
    ) -> Iterator[tuple[str, float]]:
        """Means over a batch, by name; several values of one name are summed."""
        share = 1 / len(TIMESTEP_SHARES)
        for place, noise in zip(TIMESTEP_SHARES, batch.noise, strict=True):
            timestep = int(place * len(stage.alphas_cumprod))
            # The last step's weights: a Gram loss that starts late is measured from the beginning.
            right = self._losses(stage, batch.right, noise, timestep, stage.settings.steps - 1)
            wrong = self._losses(stage, batch.wrong, noise, timestep, 0)
            yield f"loss_t{timestep}", right["loss/diffusion"]
            yield "loss", right["loss/diffusion"] * share
            yield "loss_wrong_reference", wrong["loss/diffusion"] * share
            for name, value in right.items():
                if name.startswith("loss/gram"):
                    yield name.removeprefix("loss/"), value * share

    def _losses(
        self, stage: TrainingStage, batch: TrainBatch, noise: torch.Tensor, timestep: int, step: int
    ) -> dict[str, float]:
        # Mask thresholds are drawn while the loss is computed.
        generators = [torch.Generator().manual_seed(timestep + row) for row in range(batch.size)]
        draws = _draws(stage.clean_latents(batch), noise, timestep, stage.alphas_cumprod)
        half = stage.autocast_dtype
        with torch.autocast(noise.device.type, half, enabled=half is not None):
            parts = stage.loss(batch, draws, step, generators).parts
        return {name: float(value) for name, value in parts.items()}


def unseen_samples(shards: Path | str, count: int) -> tuple[ShardReader, list[int]]:
    """Samples spread over the test split, the same at every call.

    Args:
        shards: The data set; where it has no test split, its training split is taken.
        count: Samples; fewer when the split has fewer.

    Returns:
        The split and the rows.
    """
    splits = read_manifest(shards).counts
    reader = ShardReader(shards, "test" if "test" in splits else "train")
    stride = max(1, len(reader) // max(1, count))
    return reader, list(range(0, len(reader), stride))[:count]


def _draws(
    latents: torch.Tensor, noise: torch.Tensor, timestep: int, schedule: torch.Tensor
) -> StepDraws:
    """A step without chance: this noise at this timestep, nothing dropped."""
    timesteps = torch.full((len(latents),), timestep, device=latents.device)
    alphas = schedule.to(latents.device)[timesteps]
    keep = torch.ones(5, len(latents), device=latents.device)
    return StepDraws(
        timesteps=timesteps,
        noisy_latents=add_noise(latents, noise, alphas),
        target=velocity(latents, noise, alphas),
        alphas=alphas,
        keep_reference=keep[0],
        keep_sketch=keep[1:],
    )


def _batches(job: StageJob, device: torch.device) -> Iterator[ValidationBatch]:
    """The samples, by shape."""
    config = job.config
    reader, rows = unseen_samples(job.data.shards, config.tracking.validation_samples)
    shapes: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for sample in reader.read(rows, _COLUMNS):
        wrong = reader.read([reader.row_of[sample["mismatched_ids"][0]]], _COLUMNS)[0]
        picture = decode_pixels(sample["image"])
        shapes[picture.shape].append(sample | {"pixels": picture, "other": wrong})
    encode = FrozenEncoders(config.components, config.model.reference.use_tagger, job.settings)
    for samples in shapes.values():
        for first in range(0, len(samples), ROWS_PER_PASS):
            yield _batch(samples[first : first + ROWS_PER_PASS], job, encode, device)


def _batch(
    samples: Sequence[Row], job: StageJob, encode: FrozenEncoders, device: torch.device
) -> ValidationBatch:
    batches = [
        _train_batch([_row(sample, job.settings, right) for sample in samples], job, encode, device)
        for right in (True, False)
    ]
    shape = batches[0].latents.shape[1:]
    noise = torch.stack([_noise(sample["sample_id"], shape) for sample in samples], dim=1)
    return ValidationBatch(*batches, noise.to(device))


def _train_batch(
    rows: Sequence[Row], job: StageJob, encode: FrozenEncoders, device: torch.device
) -> TrainBatch:
    columns = encode({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    tensors = {name: torch.as_tensor(values).to(device) for name, values in columns.items()}
    return make_batch(tensors, job.config.model.unet.added_embedding_dim)


def _row(sample: Row, settings: StageBase, right: bool) -> Row:
    """The columns of a training row, without anything drawn; see ``training_dataset``."""
    picture, mask = sample["pixels"], decode_pixels(sample["mask"])
    bucket = Bucket(*mask.shape)
    other = fit(decode_pixels(sample["other"]["image"]), bucket)
    other_mask = fit(decode_pixels(sample["other"]["mask"]), bucket, cv2.INTER_NEAREST)
    reference, unrelated = (picture, other) if right else (other, picture)
    reference_mask = mask if right else other_mask
    row = {
        "image": picture,
        "sketch": decode_pixels(sample["sketches"][0]),
        "foreground_mask": mask,
        "original_area": np.float32(sample["original_area"]),
        "aesthetic_score": np.float32(sample["aesthetic_score"]),
        "reference_image": reference,
    }
    match settings:
        case DualBranchStage():
            return row | {"mismatched_image": unrelated}
        case BackgroundStage():
            return row | {"background_image": reference, "reference_mask": reference_mask}
        case _:
            return row | {"reference_mask": reference_mask}


def _noise(sample_id: str, shape: torch.Size) -> torch.Tensor:
    """Noise of a sample for all timesteps: a function of its id, ``T x C x h x w``."""
    seed = np.random.SeedSequence(list(sample_id.encode())).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> 1))
    return torch.randn((len(TIMESTEP_SHARES), *shape), generator=generator)
