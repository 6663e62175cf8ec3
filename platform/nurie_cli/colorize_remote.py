"""``nurie colorize --server``: many pictures at once, with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nurie.inference.formats import format_of
from nurie_cli.sketches import Task
from nurie_serve.client import Client, Event, Picture, ServerError

AT_ONCE = 8
"""Pictures that are on their way at once: enough to fill batches, too few to fill a queue."""
KEY = "NURIE_API_KEY"
PATIENCE_S = 300.0


def colorize(
    tasks: Sequence[Task],
    extra: dict[str, str],
    controls: dict[str, Any],
    server: str,
    key_file: str | None,
    metadata: bool = True,
) -> int:
    """Let a server make pictures and return the exit code: 1 if some could not be made.

    Args:
        tasks: The pictures to make.
        extra: Files of mask and background, for all.
        controls: Those that were given.
        server: Its address.
        key_file: File of the API key; None takes it from the environment.
        metadata: Whether the settings are in the files.

    Raises:
        ServerError: If the server does not answer.
    """
    if not tasks:
        print("nothing to do: every picture is there")
        return 0
    key = Path(key_file).read_text().strip() if key_file else os.environ.get(KEY)
    client = Client(server, key, patience_s=PATIENCE_S)
    Client(server, key, patience_s=0.0).options()  # A wrong address is told at once.
    shared: dict[str, Any] = {**controls}
    for name, file in extra.items():
        shared["mask" if name == "foreground_mask" else name] = client.upload(file).upload_id
    several = len(tasks) > 1
    files = {task.reference for task in tasks}
    references: dict[Path, Picture] = {
        file: client.upload(file).upload_id if several else file for file in files
    }
    with _progress() as progress:
        crew = Crew(client, references, shared, progress, len(tasks), metadata)
        failures = crew.make(tasks)
    for task, error in failures:
        print(f"error: {task.sketch}: {error}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(tasks)} pictures could not be made", file=sys.stderr)
    return 1 if failures else 0


class Crew:
    """Sends pictures to the server, a few at once.

    Args:
        client: The server.
        references: References by file, sent already where they are used often.
        shared: Controls and pictures of all tasks.
        progress: Where progress is shown.
        count: Number of pictures.
        metadata: Whether the settings are in the files.
    """

    def __init__(
        self,
        client: Client,
        references: dict[Path, Picture],
        shared: dict[str, Any],
        progress: Progress,
        count: int,
        metadata: bool,
    ) -> None:
        self._client = client
        self._metadata = metadata
        self._references = references
        self._shared = shared
        self._progress = progress
        self._bar = progress.add_task(f"{count} pictures", total=count)
        self._running: set[str] = set()

    def make(self, tasks: Sequence[Task]) -> list[tuple[Task, ServerError | OSError]]:
        """Make all pictures; return those that could not be made, and why."""
        failures = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures: dict[Future[str], Task] = {
                pool.submit(self._make_one, task): task for task in tasks
            }
            try:
                for future in as_completed(futures):
                    try:
                        self._progress.console.print(future.result(), soft_wrap=True)
                    except (ServerError, OSError) as error:
                        failures.append((futures[future], error))
                    self._progress.advance(self._bar)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for job_id in list(self._running):
                    self._client.cancel(job_id)
                raise
        return failures

    def _make_one(self, task: Task) -> str:
        job = self._client.submit(task.sketch, self._references[task.reference], **self._shared)
        self._running.add(job.id)
        row = self._progress.add_task(task.sketch.name, total=1.0)
        try:
            done = self._client.wait(job, lambda event: self._show(row, task.sketch.name, event))
        finally:
            self._running.discard(job.id)
            self._progress.remove_task(row)
        wanted = format_of(task.output).name
        data = self._client.image(done, image_format=wanted, metadata=self._metadata)
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.output.write_bytes(data)
        return f"{task.output} (seed {done.images[0].seed})"

    def _show(self, row: TaskID, name: str, event: Event) -> None:
        data = event.data
        if event.kind == "queued" and "position" in data:
            text = f"{name}: place {data['position']} in the queue"
            self._progress.update(row, description=text)
        elif event.kind == "progress":
            share = data["step"] / data["steps"]
            self._progress.update(row, completed=share, description=name)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=False, highlight=False),
        transient=True,
    )
