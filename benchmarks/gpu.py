"""`make bench-gpu`: the `sdxl` preset on one GPU with random weights; prints tables for the docs.

Ratios are the same as in `make bench`. Figures are medians between GPU events. `--check` runs all
of it on the CPU with a small model, to check the benchmark itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.table import Table

from benchmarks import dual_branch, gram, inference
from benchmarks.__main__ import show
from benchmarks.measure import Work, seconds_of
from benchmarks.sizes import SMALL, Problem
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.models.autoencoder import build_vae, decode_latents
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet
from nurie.training.gram import gram_loss

STEPS = (20, 28)
BATCHES = (1, 4, 8, 16)
TRAINING_BATCHES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: What was measured.
        value: The number.
        unit: Its unit.
    """

    name: str
    value: float
    unit: str


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; ends with 1 when a ratio misses its goal, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each alternative")
    parser.add_argument("--check", action="store_true", help="a small model on the CPU")
    args = parser.parse_args(arguments)
    console = Console()
    diffusers_logging.set_verbosity_error()
    if args.check:
        problem = Problem(SMALL, batch=1, side=8)
    elif torch.cuda.is_available():
        config = load_config("configs/model/sdxl.yaml")
        assert isinstance(config, ModelConfig)
        problem = Problem(config, 1, config.image_size // 8, "cuda", torch.bfloat16)
    else:
        console.print("no GPU here, so nothing is measured; --check tries the benchmark itself")
        return 2
    figures = Table("figure", "value", "unit")
    for part in (_ceilings, _denoising, _training, _decoding, _gram_share):
        for figure in part(problem, args.rounds):
            console.print(f"{figure.name}: {figure.value:.4g} {figure.unit}", highlight=False)
            figures.add_row(figure.name, f"{figure.value:.4g}", figure.unit)
        _free(problem)
    several = replace(problem, batch=4)
    rows = [*dual_branch.run(several, args.rounds)]
    _free(problem)
    rows += [inference.run(problem, rounds=args.rounds), *gram.run(problem, args.rounds)]
    console.print(figures)
    return show(rows, "s", console)


def _ceilings(problem: Problem, rounds: int) -> Iterator[Figure]:
    """What the machine can do at best: one large product, one large copy."""
    side = 8192 if problem.device == "cuda" else 512
    left, right = (problem.normal(side, side, seed=seed) for seed in (0, 1))
    product = seconds_of(lambda: left @ right, rounds, problem.device)
    yield Figure("matrix product", 2 * side**3 / product / 1e12, "TFLOP/s")
    copy = seconds_of(lambda: left.clone(), rounds, problem.device)
    yield Figure("copy", 2 * left.nbytes / copy / 1e9, "GB/s")


def _denoising(problem: Problem, rounds: int) -> Iterator[Figure]:
    """Guided denoising: time of a step, of whole pictures, and pictures per second."""
    unet, encoder = problem.denoiser().eval(), problem.sketch_encoder().eval()
    vae = _vae(problem)
    for compiled in (False, True):
        if compiled and problem.device == "cpu":
            return
        if compiled:
            unet.compile_repeated_blocks(fullgraph=True)
        word = "compiled" if compiled else "eager"
        step = _pictures(problem, unet, encoder, vae, 1)
        yield Figure(f"one step, {word}", 1000 * seconds_of(step, rounds, problem.device), "ms")
        for steps in STEPS:
            work = _pictures(problem, unet, encoder, vae, steps)
            seconds = seconds_of(work, rounds, problem.device)
            yield Figure(f"{steps} steps with decoding, {word}", seconds, "s")
        for batch in BATCHES:
            many = replace(problem, batch=batch)
            work = _pictures(many, unet, encoder, vae, STEPS[0])
            seconds = seconds_of(work, max(1, rounds // 2), problem.device)
            yield Figure(f"batch {batch}, {STEPS[0]} steps, {word}", batch / seconds, "pictures/s")


def _pictures(
    problem: Problem,
    unet: ColorizationUNet,
    encoder: SketchEncoder,
    vae: AutoencoderKL,
    steps: int,
) -> Work:
    @torch.no_grad()
    def work() -> None:
        predict = inference.guided(problem, unet, encoder(problem.sketch()))
        decode_latents(vae, inference.denoise(problem, steps, predict))

    return work


def _training(problem: Problem, rounds: int) -> Iterator[Figure]:
    """The dual-branch step with AdamW, fp32 weights, autocast; the largest batch that fits."""
    exact = replace(problem, dtype=torch.float32)
    unet, encoder = exact.denoiser().train(), exact.sketch_encoder().train()
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    for batch in TRAINING_BATCHES:
        loss = dual_branch.shared_branches(replace(exact, batch=batch), unet, encoder)

        def step(loss: dual_branch.Loss = loss) -> None:
            with torch.autocast(problem.device, torch.bfloat16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        try:
            seconds = seconds_of(step, rounds, problem.device)
        except torch.cuda.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            _free(problem)
            continue
        yield Figure(f"training, batch {batch}", batch / seconds, "samples/s")
        if problem.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
            yield Figure(f"training, batch {batch}, peak memory", peak, "GiB")
        return


def _decoding(problem: Problem, rounds: int) -> Iterator[Figure]:
    """Decoding whole, and at four times the side in tiles."""
    vae = _vae(problem)
    with torch.no_grad():
        latents = problem.latents()
        seconds = seconds_of(lambda: decode_latents(vae, latents), rounds, problem.device)
        yield Figure(f"decoding {8 * problem.side} px", 1000 * seconds, "ms")
        large = replace(problem, side=4 * problem.side).latents()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * problem.side, problem.side
        vae.enable_tiling()
        _free(problem)
        seconds = seconds_of(lambda: decode_latents(vae, large), 1, problem.device)
        yield Figure(f"decoding {32 * problem.side} px in tiles", 1000 * seconds, "ms")
        if problem.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
            yield Figure(f"decoding {32 * problem.side} px in tiles, peak memory", peak, "GiB")


def _gram_share(problem: Problem, rounds: int) -> Iterator[Figure]:
    """The Gram loss alone, at the size of both blocks it is taken from."""
    width = problem.config.unet.block_out_channels[-1]
    places = (problem.side // 4) ** 2
    misaligned = problem.normal(problem.batch, places, width, seed=0).requires_grad_()
    aligned = problem.normal(problem.batch, places, width, seed=1)
    seconds = seconds_of(lambda: gram_loss(misaligned, aligned).backward(), rounds, problem.device)
    yield Figure(f"Gram loss, {places} tokens of {width} channels", 1000 * seconds, "ms")


def _vae(problem: Problem) -> AutoencoderKL:
    with torch.device(problem.device):
        return problem.placed(build_vae(problem.config.vae)).eval()


def _free(problem: Problem) -> None:
    if problem.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(main())
