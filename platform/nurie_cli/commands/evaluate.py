"""Measure a model, pictures made elsewhere, or the difference between evaluations.

A model colours unseen sketches with right, same-palette and wrong references. Results of any tool
are measured from a folder with a manifest. Finished evaluations of the same pairs are compared
picture by picture. Every way writes tables and a page with pictures, and logs them to MLflow.

Examples:
  nurie evaluate configs/eval/nano.yaml
  nurie evaluate assets/nano --data data/characters
  nurie evaluate models:/nurie@champion --data data/mine --num-samples 200
  nurie evaluate --results my-results --output runs/my-results
  nurie evaluate --compare runs/nano/evaluation runs/nano-no-gram/evaluation
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nurie.config.evaluate import EvaluateConfig, ResultsConfig
from nurie_cli.settings import add_config_argument, load, parse_overrides

STANDARD = "configs/eval/standard.yaml"
RESULTS = "configs/eval/results.yaml"
COMPARISON = "runs/comparison"
TRACKING = ("tracking.uri", "tracking.experiment")
"""Where a comparison is logged, if not where its first evaluation was."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser, default=STANDARD)
    parser.add_argument(
        "--data", metavar="SHARDS", help="data set whose test split is used; CONFIG is then a model"
    )
    parser.add_argument(
        "--results", metavar="DIR", help="measure pictures made elsewhere: a folder with a manifest"
    )
    parser.add_argument(
        "--compare",
        metavar="DIR",
        nargs="+",
        help="compare finished evaluations; the first is what the others are compared with",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie evaluate``."""
    if args.compare:
        return _compare(args)
    if args.results:
        path = RESULTS if args.config == STANDARD else args.config
        config = load(path, ["--results", args.results, *args.settings], ResultsConfig)
        from nurie_pipelines.evaluate.run import evaluate_results

        evaluate_results(config)
        return 0
    config = load(*_file_and_settings(args), EvaluateConfig)
    from nurie_pipelines.evaluate.run import evaluate

    evaluate(config)
    return 0


def _file_and_settings(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The file, and its settings; a model in the file's place is measured with the standard one."""
    if args.config.endswith((".yaml", ".yml")):
        shards = ["--shards", args.data] if args.data else []
        return args.config, [*shards, *args.settings]
    if args.data is None:
        raise ValueError(
            f"{args.config} is no YAML file; to measure a model say on what: "
            f"nurie evaluate {args.config} --data SHARDS"
        )
    name = args.config.removeprefix("models:/").replace("@", "-").strip("/").replace("/", "-")
    given = ["--model", args.config, "--shards", args.data]
    if not any(word.split("=")[0] == "--output" for word in args.settings):
        given += ["--output", f"runs/evaluation/{name}"]
    return STANDARD, [*given, *args.settings]


def _compare(args: argparse.Namespace) -> int:
    given = parse_overrides(args.settings, "--compare")
    for name in given.keys() - {"output", *TRACKING}:
        raise ValueError(f"--{name}: --compare takes --output, --{' and --'.join(TRACKING)} only")
    from nurie_pipelines.evaluate.comparison import compare_evaluations

    compare_evaluations(
        [Path(folder) for folder in args.compare],
        Path(given.get("output", COMPARISON)).absolute(),
        {name.partition(".")[2]: str(given[name]) for name in TRACKING if name in given},
    )
    return 0
