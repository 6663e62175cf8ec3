"""Plan a training run before it starts: parameters, operations, memory, hours and cost.

The stages' own modules run on tensors without content, so any size can be planned on any machine.

Examples:
  nurie plan configs/train/sdxl.yaml --gpu h100 --num-gpus 8 --price-per-gpu-hour 2.50
  nurie plan configs/train/sdxl.yaml --gpu-memory-gib 64 --peak-tflops 400 --utilisation 0.3
  nurie plan configs/train/nano.yaml --stages.backbone.batch-size 64 --json
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from nurie.config.train import TrainConfig
from nurie.planning.gpus import DEFAULT_HEADROOM, DEFAULT_UTILISATION, Gpu, find_gpu
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser)
    parser.add_argument("--gpu", metavar="NAME", help="kind of GPU, such as h100 or rtx-4090")
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="one worker each (default: engine.num_workers)"
    )
    parser.add_argument(
        "--gpu-memory-gib", type=float, metavar="GIB", help="memory of a GPU that is not known"
    )
    parser.add_argument(
        "--peak-tflops", type=float, metavar="T", help="its dense peak in the run's precision"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=DEFAULT_UTILISATION,
        metavar="SHARE",
        help="share of the peak that a step reaches (default: %(default)s, what the best published "
        "logs of a diffusion U-Net reach on 8 H100 and H200: MLPerf Training 4.1 and 5.0)",
    )
    parser.add_argument(
        "--headroom",
        type=float,
        default=DEFAULT_HEADROOM,
        metavar="SHARE",
        help="share of the memory left for the driver, workspaces of libraries and "
        "fragmentation (default: %(default)s)",
    )
    parser.add_argument(
        "--price-per-gpu-hour", type=float, metavar="PRICE", help="adds the cost, in any currency"
    )
    parser.add_argument("--json", action="store_true", help="print the plan for programs")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie plan``."""
    config = load(args.config, args.settings, TrainConfig)
    _check(args)
    from rich.console import Console

    from nurie.planning.plan import plan_run
    from nurie.planning.results import Machine
    from nurie_cli.plan_tables import as_json, show_plan

    machine = Machine(
        num_gpus=args.num_gpus or config.engine.num_workers,
        gpu=_gpu(args),
        utilisation=args.utilisation,
        headroom=args.headroom,
        price_per_gpu_hour=args.price_per_gpu_hour,
    )
    with Console(stderr=True).status("counting every stage's step"):
        plan = plan_run(config, machine)
    if args.json:
        print(as_json(plan))
    else:
        show_plan(plan, Console())
    return 0


def _check(args: argparse.Namespace) -> None:
    limits = {
        "--num-gpus": (args.num_gpus, 1, None),
        "--gpu-memory-gib": (args.gpu_memory_gib, 0.001, None),
        "--peak-tflops": (args.peak_tflops, 0.001, None),
        "--utilisation": (args.utilisation, 0.001, 1),
        "--headroom": (args.headroom, 0, 0.9),
        "--price-per-gpu-hour": (args.price_per_gpu_hour, 0, None),
    }
    for name, (value, least, most) in limits.items():
        if value is not None and (value < least or (most is not None and value > most)):
            upper = f" and at most {most}" if most is not None else ""
            raise ValueError(f"{name} {value:g}: must be at least {least}{upper}")


def _gpu(args: argparse.Namespace) -> Gpu | None:
    """The named GPU, with the given memory and peak instead of its own."""
    given = (args.gpu_memory_gib, args.peak_tflops)
    if args.gpu is None:
        if given == (None, None):
            return None
        if None in given:
            raise ValueError("a GPU without a name needs both --gpu-memory-gib and --peak-tflops")
        return Gpu("another GPU", args.gpu_memory_gib, args.peak_tflops, args.peak_tflops)
    gpu = find_gpu(args.gpu)
    if args.gpu_memory_gib is not None:
        gpu = replace(gpu, memory_gib=args.gpu_memory_gib)
    if args.peak_tflops is not None:
        gpu = replace(gpu, bf16_tflops=args.peak_tflops, fp32_tflops=args.peak_tflops)
    return gpu
