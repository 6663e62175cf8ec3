"""Every exact saving of method section 5 on its own: with it and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.measure import Row, compare
from benchmarks.sizes import Problem
from nurie.models.conditioning import Conditioning
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

Tensors = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class _Saving:
    """A computation with and without one saving.

    Args:
        name: What is saved.
        ours: The result with it.
        plain: The same result without it.
        trains: Measured with gradients.
        goal: Least ratio that is accepted.
    """

    name: str
    ours: Tensors
    plain: Tensors
    trains: bool
    goal: float


def run(problem: Problem, rounds: int = 3) -> Iterator[Row]:
    """Measure every saving; the difference is that of the results."""
    unet, encoder = problem.denoiser(), problem.sketch_encoder()
    for saving in (*_of_training(problem, unet, encoder), *_of_inference(problem, unet, encoder)):
        works = [_work(made, saving.trains) for made in (saving.ours, saving.plain)]
        with torch.no_grad():
            ours, plain = saving.ours(), saving.plain()
        difference = ((ours - plain).norm() / plain.norm()).item()
        times = compare(works[0], works[1], rounds, problem.device)
        yield Row(f"{saving.name} | without", *times, saving.goal, f"{difference:.0e}")


def _of_training(
    problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder
) -> Iterator[_Saving]:
    latents, timesteps, sketch = problem.latents(), problem.timesteps(), problem.sketch()
    blocks = problem.config.gram_block_ids
    given = problem.conditioning([f.detach() for f in encoder(sketch)])
    assert given.reference_tokens is not None
    both = replace(
        given, reference_tokens=torch.cat([given.reference_tokens, problem.reference(seed=6)])
    )

    def with_blocks(keep_branches: int | None) -> torch.Tensor:
        out = unet(latents, timesteps, both, capture=blocks, keep_branches=keep_branches)
        return _flat([out.sample[: problem.batch], *(out.blocks[block] for block in blocks)])

    yield _Saving(
        "the misaligned branch ends after the last Gram block",
        lambda: with_blocks(1),
        lambda: with_blocks(None),
        True,
        1.0,
    )

    def doubled() -> torch.Tensor:
        twice = replace(
            both,
            added_cond=torch.cat([given.added_cond] * 2),
            sketch_features=[torch.cat([f, f]) for f in given.sketch_features or ()],
        )
        return unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), twice).sample

    yield _Saving(
        "the trunk before the first cross-attention, once for both branches",
        lambda: unet(latents, timesteps, both).sample,
        doubled,
        True,
        1.0,
    )
    yield _Saving(
        "sketch features, once for both branches",
        lambda: torch.cat([_flat(encoder(sketch))] * 2),
        lambda: torch.cat([_flat(encoder(sketch)), _flat(encoder(sketch))]),
        True,
        1.5,
    )


def _of_inference(
    problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder
) -> Iterator[_Saving]:
    latents, timesteps = problem.latents(), problem.timesteps()
    with torch.no_grad():
        given = problem.conditioning(encoder(problem.sketch()))
    assert given.reference_tokens is not None
    zeros = torch.cat([given.reference_tokens, torch.zeros_like(given.reference_tokens)])

    def predicted(conditioning: Conditioning) -> torch.Tensor:
        return unet(latents, timesteps, conditioning).sample

    yield _Saving(
        "no cross-attention in the branch without a reference",
        lambda: predicted(replace(given, num_null_branches=1)),
        lambda: predicted(replace(given, reference_tokens=zeros)),
        False,
        1.0,
    )
    cached = replace(given, cache={})
    yield _Saving(
        "reference keys and values, once per picture",
        lambda: predicted(cached),
        lambda: predicted(given),
        False,
        1.0,
    )


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _work(made: Tensors, trains: bool) -> Callable[[], None]:
    def work() -> None:
        with torch.set_grad_enabled(trains):
            result = made()
        if trains:
            result.square().mean().backward()

    return work
