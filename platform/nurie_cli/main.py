"""The console script ``nurie``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import nurie

COMMANDS = {
    "demo": "the main job on the built-in data: data, training, evaluation, server, picture",
    "data": "build and look at data sets",
    "train": "run a training: backbone, foreground and background stage",
    "plan": "what a training takes: parameters, memory, hours and cost, before it starts",
    "evaluate": "measure a model on unseen pictures, or pictures made elsewhere",
    "ablate": "train and measure variants of one training",
    "study": "ask people which results they prefer",
    "colorize": "colour one sketch with a reference picture",
    "serve": "start the HTTP endpoint and the page",
    "keys": "make, list and revoke API keys of the endpoint",
    "submit": "run any of these commands as a job on a Ray cluster",
    "models": "list, register, promote and verify models; train the frozen parts",
    "config": "show and check configuration files",
    "mlflow": "start the experiment dashboard",
}
"""The commands and their help; each lives in the module of the same name in ``commands``."""

EXAMPLES = """\
examples:
  nurie demo
  nurie colorize sketch.png --reference painting.jpg -o coloured.png
  nurie data build configs/data/characters.yaml
  nurie train configs/train/nano.yaml --stages.backbone.steps 50 --engine.num-workers 1
  nurie serve configs/serve/nano.yaml
  nurie submit --address http://head:8265 -- train configs/train/sdxl.yaml
"""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the named command's own arguments are filled in."""
    parser = argparse.ArgumentParser(
        prog="nurie",
        description=nurie.__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nurie {nurie.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=help_text)
            continue
        module = importlib.import_module(f"nurie_cli.commands.{name}")
        own = commands.add_parser(
            name,
            help=help_text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.configure(own)
        own.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 2 for what the user has to correct."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser(command)
    args, settings = parser.parse_known_args(arguments)
    if settings and not getattr(args, "takes_settings", False):
        parser.error(f"unknown argument {settings[0]!r}; see nurie {command} --help")
    if getattr(args, "takes_settings", False):
        from nurie_cli.settings import config_and_settings

        args.config, settings = config_and_settings(
            arguments, args.config, settings, args.default_config
        )
        if args.config is None:
            parser.error(
                f"the following arguments are required: CONFIG; see nurie {command} --help"
            )
    args.settings = settings
    try:
        return args.run(args) or 0
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            print(interrupt, file=sys.stderr)
        return getattr(interrupt, "exit_code", 130)
    except (ValueError, OSError, RuntimeError) as error:
        if not _is_for_the_user(error):
            raise
        _print_error(_sentence(error))
        return 1 if isinstance(error, RuntimeError) else 2


def _is_for_the_user(error: Exception) -> bool:
    """Tell a message of ours from a defect, which keeps its traceback.

    What our own code raises names the value and the way out (``ValueError``), or the service that
    does not answer (``RuntimeError``). The same types raised inside torch or Ray are defects.
    """
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return raised_in.split(".")[0].startswith("nurie")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def _print_error(message: str) -> None:
    red, end = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for line in message.splitlines():
        print(f"{red}error: {line}{end}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
