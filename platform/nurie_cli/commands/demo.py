"""The main job on the built-in data, step by step, with the commands a user would type.

Builds the data set, trains all three stages from the shipped weights, evaluates, registers the
model, starts the server and colours a real anime sketch and six unseen characters over HTTP. A
second run reuses what is there.

Examples:
  nurie demo
  nurie demo --exit
  nurie demo --from-scratch
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nurie.config.evaluate import EvaluateConfig
from nurie.config.train import TrainConfig
from nurie_cli.settings import load

if TYPE_CHECKING:
    from rich.console import Console

    from nurie_cli.demo_pictures import Example

FOLDER = Path(".demo")
DATA_CONFIG = "configs/data/characters.yaml"
TRAIN_CONFIG = "configs/train/nano.yaml"
FROM_SCRATCH_CONFIG = "configs/train/nano-from-scratch.yaml"
EVAL_CONFIG = "configs/eval/nano.yaml"
SERVE_CONFIG = "configs/serve/nano.yaml"
REPORT = "metrics.json"
NUM_CHARACTERS = 6
SEED = 7
START_SECONDS = 240.0

Result = TypeVar("Result")
Say = Callable[[str], None]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--exit", action="store_true", help="end instead of staying up")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train from fresh weights, not the shipped ones"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie demo``."""
    from rich.console import Console

    from nurie_cli.processes import StepError, unwind_on_signals

    unwind_on_signals()
    console = Console(highlight=False)
    try:
        with ExitStack() as children:
            Demo(args.from_scratch, console, children).run(stay=not args.exit)
    except StepError as error:
        console.print(f"The demo stopped. {error}", style="red", markup=False)
        console.print(
            "To begin anew, `make clean` removes the data, runs and store of this folder."
        )
        return 1
    return 0


class Demo:
    """The steps in order; whatever is started goes on the stack ``children`` and ends with it."""

    def __init__(self, from_scratch: bool, console: Console, children: ExitStack) -> None:
        self.train_config = FROM_SCRATCH_CONFIG if from_scratch else TRAIN_CONFIG
        self.config = load(self.train_config, [], TrainConfig)
        self.console = console
        self.children = children

    def run(self, stay: bool) -> None:
        """Run all steps; then stay until Ctrl+C if asked to."""
        started = time.monotonic()
        self.step("data", self.command("data", "build", DATA_CONFIG))
        self.step("train and register", self.command("train", self.train_config))
        self.step("evaluate on unseen characters", self.evaluate)
        page = self.step("start the server", self.start_server)
        dashboard = self.step("start the dashboard", self.start_dashboard)
        picture = self.step("colour over HTTP", lambda say: self.colour(page, say))
        minutes = (time.monotonic() - started) / 60
        self.console.print(f"\nDone in {minutes:.1f} minutes.")
        self.console.print(f"  picture    {picture.absolute()}", soft_wrap=True)
        self.console.print(f"  report     {self.evaluation_folder}", soft_wrap=True)
        self.console.print(f"  PSNR       {self.fidelity()}", soft_wrap=True)
        if stay:
            self.console.print(f"  page       {page}\n  MLflow     {dashboard}")
            self.console.print("Stop with Ctrl+C.")
            self.stay()

    def step(self, title: str, work: Callable[[Say], Result]) -> Result:
        """Run one step under a spinner with its newest news, then print the time it took."""
        started = time.monotonic()
        with self.console.status(title) as status:

            def say(news: str) -> None:
                seconds = time.monotonic() - started
                status.update(f"{title} [dim]{seconds:4.0f} s  {_plain(news)}[/dim]")

            result = work(say)
        self.console.print(
            f"[green]✓[/green] {title} [dim]{time.monotonic() - started:.0f} s[/dim]"
        )
        return result

    def command(self, *words: str) -> Callable[[Say], None]:
        """Return a step that runs one ``nurie`` command to its end."""
        from nurie_cli.processes import NurieProcess

        def work(say: Say) -> None:
            log = FOLDER / "logs" / f"{words[0]}.log"
            with NurieProcess(words, log) as process:
                process.wait(say)

        return work

    @property
    def evaluation_folder(self) -> Path:
        """Where the evaluation's table and contact sheet go."""
        return self.config.output / "evaluation"

    def evaluate(self, say: Say) -> None:
        """Measure the model that was just trained, unless its report is there."""
        model, output = self.config.output / "model", self.evaluation_folder
        config = load(EVAL_CONFIG, ["--model", str(model), "--output", str(output)], EvaluateConfig)
        if not _is_evaluated(config):
            words = ["evaluate", EVAL_CONFIG, "--model", str(model), "--output", str(output)]
            self.command(*words)(say)

    def fidelity(self) -> str:
        """Return the evaluation's main numbers: fidelity by kind of reference."""
        report = json.loads((self.evaluation_folder / REPORT).read_text())
        return ", ".join(
            f"{protocol.replace('_', ' ')} reference {measured['psnr']['mean']:.1f} dB"
            for protocol, measured in report["protocols"].items()
        )

    def start_server(self, say: Say) -> str:
        """Start the HTTP endpoint with the registered model and return the page's address."""
        tracking = self.config.tracking
        model = f"models:/{tracking.registered_model}@{tracking.alias}"
        jobs = str(FOLDER / "jobs")
        words = ["serve", SERVE_CONFIG, "--model", model, "--jobs.folder", jobs]
        return self._start(words, 8000, "/readyz", say)

    def start_dashboard(self, say: Say) -> str:
        """Start MLflow's dashboard and return its address."""
        from nurie.tracking.server import runs_pages

        tracking = self.config.tracking
        address = self._start(["mlflow", "--store", tracking.uri], 5000, "/health", say)
        return address + runs_pages(tracking.uri)[tracking.experiment]

    def _start(self, words: list[str], wanted: int, health: str, say: Say) -> str:
        from nurie_cli.processes import NurieProcess, free_port

        port = free_port(wanted)
        if port != wanted:
            self.console.print(f"  port {wanted} is taken, using {port}")
        log = FOLDER / "logs" / f"{words[0]}.log"
        process = self.children.enter_context(NurieProcess([*words, "--port", str(port)], log))
        url = f"http://127.0.0.1:{port}"
        say(f"waiting for {url}{health}")
        process.wait_until(lambda: _answers(url + health), START_SECONDS)
        return url

    def colour(self, page: str, say: Say) -> Path:
        """Colour Sylvie and the unseen characters and write the contact sheet."""
        from nurie_cli.demo_pictures import colour_over_http, load_examples, write_sheet

        examples: list[Example] = load_examples(NUM_CHARACTERS, SEED)
        results = colour_over_http(page, examples, SEED, say)
        picture = FOLDER / "result.png"
        write_sheet(examples, results, picture)
        return picture

    def stay(self) -> None:
        """Wait for Ctrl+C."""
        try:
            signal.pause()
        except KeyboardInterrupt:
            self.console.print("\nstopping")


def _is_evaluated(config: EvaluateConfig) -> bool:
    """Whether the report in the output folder is of these very weights, with these settings."""
    from nurie.checkpoints.manifest import manifest_digest

    report = config.output / REPORT
    if not report.exists():
        return False
    found = json.loads(report.read_text())
    wanted = {"model_digest": manifest_digest(config.model)}
    for name in ("num_samples", "num_inference_steps", "guidance_scale", "seed"):
        wanted[name] = getattr(config, name)
    return all(found.get(name) == value for name, value in wanted.items())


def _answers(url: str) -> bool:
    import requests

    try:
        return requests.get(url, timeout=5).status_code == requests.codes.ok
    except requests.RequestException:
        return False


def _plain(news: str) -> str:
    """Shorten a log line and take the markup's brackets out of it."""
    from rich.markup import escape

    return escape(news[:90])
