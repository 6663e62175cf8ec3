"""Ask people which results they prefer, blind, and evaluate their answers.

A study shows a sketch, a reference and two results, in random order and on random sides, with
attention checks in between.

Examples:
  nurie study build runs/a/evaluation runs/b/evaluation -o runs/study
  nurie study serve runs/study
  nurie study serve runs/study --host 0.0.0.0 --keys-file keys.yaml
  nurie study report runs/study
"""

from __future__ import annotations

import argparse
from pathlib import Path

PROTOCOLS = ("own", "same_palette", "wrong")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make the pages from finished evaluations")
    build.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="their outputs")
    build.add_argument("-o", "--output", type=Path, required=True, metavar="STUDY")
    build.add_argument("--pairs", type=int, default=40, metavar="N", help="items (default: 40)")
    build.add_argument(
        "--checks", type=int, default=4, metavar="N", help="attention checks (default: 4)"
    )
    build.add_argument(
        "--protocol", choices=PROTOCOLS, default="wrong", help="references (default: wrong)"
    )
    build.add_argument("--question", help="what raters are asked")
    build.add_argument("--seed", type=int, default=0, help="of items and pairs (default: 0)")
    serve = actions.add_parser("serve", help="show it to raters; stays until Ctrl+C")
    serve.add_argument("study", type=Path, metavar="STUDY")
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    serve.add_argument("--port", type=int, default=8010, help="default: 8010")
    serve.add_argument(
        "--keys-file", type=Path, metavar="FILE", help="keys of raters; see nurie keys"
    )
    report = actions.add_parser("report", help="evaluate the answers")
    report.add_argument("study", type=Path, metavar="STUDY")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie study``."""
    if args.action == "serve":
        from nurie_serve.study.app import serve_study

        serve_study(args.study, args.host, args.port, args.keys_file)
    elif args.action == "build":
        _build(args)
    else:
        _report(args.study)
    return 0


def _build(args: argparse.Namespace) -> None:
    from nurie_pipelines.evaluate.study import QUESTION, build_study

    if args.pairs < 1 or args.checks < 0:
        raise ValueError(f"--pairs {args.pairs}, --checks {args.checks}: at least 1 and 0")
    folder = build_study(
        args.folders,
        args.output,
        num_pairs=args.pairs,
        num_checks=args.checks,
        protocol=args.protocol,
        question=args.question or QUESTION,
        seed=args.seed,
    )
    print(f"study: {folder}; next: nurie study serve {folder}")


def _report(folder: Path) -> None:
    from nurie_pipelines.evaluate.study import REPORT, report_study

    report_study(folder)
    print((folder / REPORT).read_text())
