"""Model cards: the numbers of an evaluation between marks, everything else as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nurie.checkpoints.manifest import (
    CheckpointError,
    verify_manifest,
    weights_digest,
    write_manifest,
)
from nurie.evaluation.card import BEGIN, END, CardError, numbers, write_card
from nurie_cli import main as cli

ROOT = Path(__file__).parents[2]


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 48}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "weights.safetensors").write_bytes(bytes(1_500_000))
    write_manifest(model)
    return model


def evaluation(folder: Path, psnr: float, **changed: Any) -> Path:
    """A report of these weights, as ``nurie evaluate`` writes it."""
    report = {
        "model": "somewhere",
        "weights_digest": weights_digest(folder),
        "shards": "/data/characters",
        "shards_digest": "ab" * 32,
        "seed": 0,
        "num_inference_steps": None,
        "guidance_scale": 1.5,
        "num_samples": 48,
        "protocols": {"own": {"psnr": interval(psnr)}, "wrong": {"psnr": interval(9.5)}},
        "peers": {"mean_colour": {"own": {"psnr": interval(15.1)}}},
        "disentanglement": {"model": {"disentanglement": interval(0.668)}},
        "comparisons": {"own_minus_wrong/psnr": psnr - 9.5},
        "skipped": {"lpips": "no network"},
        "networks": {"encoder": "cd" * 32},
    }
    output = folder.parent / "evaluation"
    output.mkdir(exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(report | changed))
    return output


def test_a_model_without_a_card_gets_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluation(folder, 22.25)
    assert cli.main(["models", "card", str(folder), "--evaluation", str(report)]) == 0
    card = (folder / "README.md").read_text()
    assert "| `unet/` | 1.5 MB |" in card
    assert "| PSNR, dB | 22.2 (21.2 to 23.2) | 9.5 (8.5 to 10.5) | higher |" in card
    assert "| PSNR, dB | 22.2 | 15.1 | higher |" in card  # Beside the peer.
    assert "| disentanglement | 0.67 (-0.33 to 1.67) | higher |" in card
    assert "48 unseen samples of `characters`" in card
    assert "guidance: 1.5" in card
    assert "Left out of lpips: no network." in card
    assert "Network `encoder`: cdcdcdcdcdcd." in card
    assert "PSNR, dB: own minus wrong | 12.8" in card
    assert verify_manifest(folder) in capsys.readouterr().out


def test_what_a_person_wrote_stays_and_numbers_are_replaced(folder: Path) -> None:
    write_card(folder, evaluation(folder, 22.25))
    path = folder / "README.md"
    path.write_text(f"{path.read_text()}\n## Limits\nNone that I know.\n")  # Not in the manifest.
    write_card(folder, evaluation(folder, 30.0))
    card = path.read_text()
    assert "## Limits\nNone that I know." in card
    assert "30.0 (29.0 to 31.0)" in card
    assert "22.2" not in card
    verify_manifest(folder)


def test_a_card_is_of_its_own_weights_only(folder: Path) -> None:
    before = evaluation(folder, 22.25)
    write_card(folder, before)
    write_card(folder, before)  # A new card is no new model.
    with pytest.raises(CardError, match="other weights"):
        write_card(folder, evaluation(folder, 22.25, weights_digest="0" * 64))
    with pytest.raises(CardError, match=r"metrics\.json: missing"):
        write_card(folder, folder.parent / "nothing")
    (folder / "README.md").write_text("# By hand\n")
    with pytest.raises(CardError, match=f"between the lines {BEGIN!r} and {END!r}"):
        write_card(folder, evaluation(folder, 22.25))
    (folder / "unet" / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        write_card(folder, before)


def test_the_shipped_card_has_the_numbers_of_its_report() -> None:
    """The card, the published report and the weights that are shipped belong together."""
    nano = ROOT / "assets/nano"
    card = (nano / "README.md").read_text()
    section = card.split(BEGIN)[1].split(END)[0]
    report = json.loads((ROOT / "docs/reference/nano-evaluation.json").read_text())
    assert report["weights_digest"] == weights_digest(nano)
    assert section.strip() == numbers(report)
