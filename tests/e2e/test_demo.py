"""`nurie demo` as a whole, made small: a thin U-Net, two steps per stage, two dozen pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.ray, pytest.mark.serve]

STEPS = 2
CHANGES: dict[str, dict[str, Any]] = {
    "configs/data/characters.yaml": {
        "source": {
            "kind": "characters",
            "palettes_per_character": 2,
            "characters_per_palette": 2,
            "max_characters": 8,
        },
    },
    "configs/train/nano.yaml": {
        "init_from": None,
        "model": {
            "extends": "../model/nano.yaml",
            "unet": {"block_out_channels": [32, 32, 32], "layers_per_block": 1},
            "gram_block_ids": [4, 9],
        },
        "stages": [
            {"kind": kind, "steps": STEPS, "batch_size": 4}
            for kind in ("backbone", "foreground", "background")
        ],
    },
    "configs/eval/nano.yaml": {"num_samples": 4, "num_inference_steps": 2, "sheet_rows": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the repository's own configs, made small, and its assets."""
    folder = tmp_path_factory.mktemp("demo")
    for file in (ROOT / "configs").rglob("*.yaml"):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    for name, changes in CHANGES.items():
        small = yaml.safe_load((folder / name).read_text()) | changes
        (folder / name).write_text(yaml.safe_dump(small))
    (folder / "assets").symlink_to(ROOT / "assets")
    return folder


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nurie_cli.main", "demo", "--exit"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def processes_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.timeout(1800)
def test_the_demo_colours_over_http_cleans_up_and_is_resumed(folder):
    first = run_demo(folder)
    assert first.returncode == 0, first.stdout + first.stderr
    with Image.open(folder / ".demo" / "result.png") as sheet:
        assert sheet.height > 7 * sheet.width // 5  # seven rows of four pictures
    assert processes_in(folder) == []
    manifest = folder / "runs" / "nano" / "model" / "MANIFEST.json"
    report = folder / "runs" / "nano" / "evaluation" / "metrics.json"
    made = [file.stat().st_mtime_ns for file in (manifest, report)]

    second = run_demo(folder)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [file.stat().st_mtime_ns for file in (manifest, report)] == made

    (folder / "configs/serve/nano.yaml").write_text("kind: serve\nnot_a_setting: 1\n")
    third = run_demo(folder)
    assert third.returncode == 1
    assert "nurie serve" in third.stdout
    assert "not_a_setting" in third.stdout
    assert processes_in(folder) == []
