"""The progress display survives what workers write."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from nurie_pipelines.train.failures import FAILURES_FILE
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.progress import follow_progress


def test_a_failure_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    # What gloo says; rich would read the bracket as a closing tag.
    error = "RuntimeError: [/src/gloo/pair.cc:537] Connection closed by peer"
    settings = SimpleNamespace(steps=4)
    job = cast("StageJob", SimpleNamespace(kind="backbone", settings=settings, folder=tmp_path))
    text = io.StringIO()
    with follow_progress(job, Console(file=text, width=200)):
        failure = {"time": 0.0, "rank": 1, "error": f"Traceback\n{error}\n"}
        (tmp_path / FAILURES_FILE).write_text(json.dumps(failure) + "\n")
    assert f"worker 1 failed: {error}" in text.getvalue()
