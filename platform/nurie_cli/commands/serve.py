"""Start the HTTP endpoint and the page; stays until Ctrl+C.

Examples:
  nurie serve
  nurie serve configs/serve/nano.yaml --port 8080 --model assets/nano
  nurie serve --status
  nurie serve configs/serve/sdxl.yaml --write-deploy-file serve.yaml
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nurie.config.serve import ServeConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser, default="configs/serve/nano.yaml")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--status", action="store_true", help="show how the running endpoint is doing"
    )
    instead.add_argument(
        "--write-deploy-file", type=Path, metavar="FILE", help="write a file for `serve deploy`"
    )
    instead.add_argument(
        "--check-deploy-file",
        type=Path,
        metavar="FILE",
        help="check such a file: Ray Serve itself ignores misspelt keys",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie serve``."""
    if args.check_deploy_file:
        from nurie_serve.deploy_file import check_deploy_file

        check_deploy_file(args.check_deploy_file)
        print(f"{args.check_deploy_file} is valid")
        return 0
    config = load(args.config, args.settings, ServeConfig)
    if args.status:
        return show_status(config.address)
    if args.write_deploy_file:
        return write_deploy_file(config, args.write_deploy_file)
    from nurie_serve.run import serve

    serve(config, blocking=True)
    return 0


def show_status(address: str) -> int:
    """Print how an endpoint is doing; exit code 1 if it makes no pictures."""
    from nurie_serve.client import Client, ServerError

    client = Client(address, os.environ.get("NURIE_API_KEY"), timeout_s=10.0, patience_s=0.0)
    try:
        queue = client.queue()
        models = client.models()
        ready = client.is_ready()
    except ServerError as error:
        print(f"{address}: {error}")
        return 1
    print(f"{address}: {'ready' if ready else 'no replica lives'}")
    for model in models:
        print(f"  model    {model['name']} sha256:{model['digest'][:12]} on {model['device']}")
    print(f"  queue    {queue['queued']} of {queue['max_queued']} wait, {queue['running']} run")
    if queue["eta_s"] is not None:
        print(f"  estimate {queue['eta_s']:.0f} s for one more picture")
    return 0 if ready else 1


def write_deploy_file(config: ServeConfig, file: Path) -> int:
    """Write a config file for ``serve deploy``."""
    import yaml

    from nurie_serve.deploy_file import check_deploy_file, deploy_document

    text = yaml.safe_dump(deploy_document(config), sort_keys=False)
    file.write_text(f"# serve deploy {file.name}\n{text}")
    check_deploy_file(file)
    print(f"{file}: deploy it with `serve deploy {file}`")
    return 0
