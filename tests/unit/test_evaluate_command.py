"""The forms of ``nurie evaluate``: a file, a model with a data set, results made elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from nurie_cli import main as cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """What would have been evaluated."""
    found: list = []
    monkeypatch.chdir(ROOT)
    for name in ("evaluate", "evaluate_results"):
        monkeypatch.setattr(f"nurie_pipelines.evaluate.run.{name}", found.append)
    return found


def test_a_model_and_a_data_set_are_enough(asked: list) -> None:
    assert cli.main(["evaluate", "assets/nano", "--data", "data/mine", "--num-samples", "7"]) == 0
    (config,) = asked
    assert (config.model, config.num_samples) == ("assets/nano", 7)
    assert config.shards == ROOT / "data/mine"
    assert config.output == ROOT / "runs/evaluation/assets-nano"
    assert config.disentanglement is not None
    assert len(config.peers) == 3


def test_a_registered_model_has_an_output_of_its_own(asked: list) -> None:
    assert cli.main(["evaluate", "models:/nurie@champion", "--data", "d"]) == 0
    assert asked[0].output == ROOT / "runs/evaluation/nurie-champion"
    assert cli.main(["evaluate", "models:/nurie@champion", "--data", "d", "--output=o"]) == 0
    assert asked[1].output == ROOT / "o"


def test_a_file_stays_what_it_was(asked: list) -> None:
    words = ["evaluate", "configs/eval/nano.yaml", "--model", "assets/nano", "--output", "o"]
    assert cli.main(words) == 0
    assert asked[0].peers == ()
    assert asked[0].num_samples == 48
    assert cli.main(["evaluate", "configs/eval/nano.yaml", "--data", "elsewhere"]) == 0
    assert asked[1].shards == ROOT / "elsewhere"


def test_results_need_no_model(asked: list) -> None:
    assert cli.main(["evaluate", "--results", "theirs", "--output", "o"]) == 0
    assert asked[0].kind == "eval-results"
    assert asked[0].results == ROOT / "theirs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["assets/nano"], "say on what: nurie evaluate assets/nano --data SHARDS"),
        (
            ["--compare", "a", "b", "--seed", "3"],
            "--seed: --compare takes --output",
        ),
        (["--compare", "a", "b"], "a: no finished evaluation"),
        (["configs/model/nano.yaml"], "this command needs a file of kind 'eval'"),
        (["--results", "x", "--num-samples", "3"], "num_samples: unknown setting"),
    ],
)
def test_what_is_missing_is_said(asked: list, words: list[str], message: str, capsys) -> None:
    assert cli.main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
    assert asked == []
