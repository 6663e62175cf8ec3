"""Run a command as a job on a Ray cluster; streams its log and returns its exit code.

Examples:
  nurie submit --address http://head:8265 -- train configs/train/sdxl.yaml
  nurie submit -- data build configs/data/characters.yaml
  nurie submit --submission-id night-7 -- train configs/train/nano.yaml --name night-7
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--address",
        help="the cluster's job API, as http://head:8265 "
        "(default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, this machine)",
    )
    parser.add_argument(
        "--submission-id", metavar="NAME", help="name of the job; one that exists is followed"
    )
    parser.add_argument(
        "--cluster-dir", metavar="FOLDER", help="folder of the cluster to run in, with its configs"
    )
    parser.add_argument(
        "--entrypoint-num-cpus",
        type=float,
        default=0.0,
        metavar="N",
        help="CPUs reserved for the driver (more than 0 keeps it off a head node without any)",
    )
    parser.add_argument("words", nargs="+", metavar="-- COMMAND", help="a nurie command")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie submit``."""
    from nurie_pipelines.jobs.submit import submit

    return submit(
        args.words,
        args.address,
        submission_id=args.submission_id,
        cluster_dir=args.cluster_dir,
        entrypoint_num_cpus=args.entrypoint_num_cpus,
    )
