"""Train and measure variants of one training, to see what each part is worth.

The same data, steps and seeds for all; one table and one grid of pictures at the end. Long: what is
done stays, and the same command goes on. On a cluster: `nurie submit -- ablate FILE`.

Examples:
  nurie ablate configs/eval/ablations-nano.yaml --dry-run
  nurie ablate configs/eval/ablations-nano.yaml
  nurie ablate configs/eval/ablations-nano.yaml --seeds [0]
"""

from __future__ import annotations

import argparse

from nurie.config.evaluate import AblationsConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the trainings and stop")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie ablate``."""
    config = load(args.config, args.settings, AblationsConfig)
    if args.dry_run:
        from nurie_pipelines.evaluate.ablation_runs import plan_runs

        for run in plan_runs(config):
            stages = ", ".join(f"{stage.kind} {stage.steps}" for stage in run.train.stages)
            print(f"{run.train.name}: {stages}; {run.train.output}")
        for name, variant in config.variants.items():
            if variant.same_as is not None:
                print(
                    f"{config.name}-{name}: not trained, the same as {variant.same_as}: "
                    f"{variant.reason}"
                )
        return 0
    from nurie_pipelines.evaluate.ablate import ablate

    ablate(config)
    print(f"table and grid: {config.output}")
    return 0
