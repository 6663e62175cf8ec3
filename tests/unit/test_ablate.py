"""Ablations: what is trained, what is skipped, what is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nurie.config.evaluate import AblationsConfig
from nurie.config.loader import ConfigError, load_config
from nurie.evaluation.statistics import bootstrap_crossed
from nurie_cli import main as cli
from nurie_pipelines.evaluate import ablate as module
from nurie_pipelines.evaluate.ablation_report import compare_variants, mark
from nurie_pipelines.evaluate.ablation_runs import plan_runs

ROOT = Path(__file__).parents[2]
FILE = "configs/eval/ablations-nano.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config(**overrides: object) -> AblationsConfig:
    loaded = load_config(FILE, {name.replace("__", "."): v for name, v in overrides.items()})
    assert isinstance(loaded, AblationsConfig)
    return loaded


def test_variants_differ_in_what_they_name_only() -> None:
    runs = {(run.variant, run.seed): run for run in plan_runs(config())}
    assert len(runs) == 18
    full = runs["full", 0].train.model_dump(mode="json")
    own = {"name", "output"}
    changed = {"no_gram": {"stages"}, "no_tagger": {"model"}, "no_foreground": {"stages"}}
    for name, expected in changed.items():
        other = runs[name, 0].train.model_dump(mode="json")
        assert {key for key in full if full[key] != other[key]} == own | expected
    kinds = [stage.kind for stage in runs["no_foreground", 0].train.stages]
    assert kinds == ["backbone", "background"]
    again = runs["full", 2].train.model_dump(mode="json")
    assert {key for key in full if full[key] != again[key]} == own | {"seed"}
    for run in runs.values():
        assert run.train.tracking.registered_model is None
        assert run.train.init_from is None
        assert run.evaluate.model == str(run.train.output / "model")
        assert run.evaluate.name == run.train.name  # MLflow's list tells them apart.
        assert run.evaluate.seed == 0  # All are measured on the same pairs.
        assert run.evaluate.disentanglement is not None


def test_settings_of_all_variants_reach_those_that_drop_a_stage() -> None:
    settings = {"stages.backbone.steps": 7, "stages.foreground.steps": 3}
    runs = {run.variant: run for run in plan_runs(config(settings=settings, seeds=[0]))}
    steps = {n: [(s.kind, s.steps) for s in run.train.stages] for n, run in runs.items()}
    assert steps["full"] == [("backbone", 7), ("foreground", 3), ("background", 60)]
    assert steps["no_foreground"] == [("backbone", 7), ("background", 60)]
    assert steps["no_background"] == [("backbone", 7), ("foreground", 3)]


def test_a_variant_that_is_the_same_says_so(capsys) -> None:
    assert "no_misaligned_branch" not in {run.variant for run in plan_runs(config())}
    assert cli.main(["ablate", FILE, "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "no_misaligned_branch: not trained, the same as no_gram: only the Gram loss" in last
    same = {"same_as": "b", "reason": "for a reason"}
    for variants, words in (
        ({"a": {}, "c": same}, "nothing to compare"),
        ({"a": {}, "b": {}, "c": same | {"same_as": "d"}}, "'d' is no trained variant"),
        ({"a": {}, "b": {}, "c": {"same_as": "b"}}, "give both or none"),
        ({"a": {}, "b": {}, "c": same | {"settings": {"seed": 1}}}, "takes no settings"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(variants=variants)


def test_the_time_left_is_what_the_same_variant_took(tmp_path: Path) -> None:
    runs = plan_runs(config(output=str(tmp_path), seeds=[0, 1]))
    for run, seconds in zip(runs[:2], (6000, 1200), strict=True):
        run.train.output.mkdir(parents=True)
        (run.train.output / "seconds.json").write_text(str(seconds))
        run.mark_done()
    # Four variants and their second runs by the mean of 3600 s, two second runs by their own.
    assert module.time_left(runs) == "2:00 h spent, about 10:00 h left"
    assert module.time_left(runs[2:]) == "0:00 h spent"


def test_a_wrong_variant_is_found_before_anything_is_trained(capsys) -> None:
    words = ["ablate", FILE, "--variants.no_gram.settings", "{stages.backbone.gramm.weight: 0}"]
    assert cli.main(words) == 2
    assert "gramm" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="nano.yaml: output: unknown setting"):
        plan_runs(config(train="configs/model/nano.yaml", variants={"a": {}, "b": {}}))
    with pytest.raises(ConfigError, match="has one twice"):
        config(seeds=[1, 1])


def test_the_dry_run_lists_the_trainings(capsys) -> None:
    assert cli.main(["ablate", FILE, "--dry-run", "--seeds", "[4]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[4].startswith("ablations-nano-no_foreground-4: backbone 240, background 40; ")


def test_what_is_measured_is_not_trained_again(tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []

    def interrupted(config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nurie_pipelines.train.run.train", lambda run: done.append(run.name))
    monkeypatch.setattr("nurie_pipelines.evaluate.run.evaluate", lambda config: None)
    monkeypatch.setattr(module, "report_ablations", lambda config, runs: {"runs": len(runs)})
    short = config(output=str(tmp_path), seeds=[0])
    assert module.ablate(short) == {"runs": 6}
    assert len(done) == 6
    module.ablate(short)
    assert len(done) == 6
    # Other settings are other runs: the training refuses its folder, nothing old is reported.
    module.ablate(config(output=str(tmp_path), seeds=[0], settings={"seed": 1, "guard.window": 9}))
    assert len(done) == 12
    monkeypatch.setattr("nurie_pipelines.evaluate.run.evaluate", interrupted)
    longer = config(output=str(tmp_path), seeds=[0, 1], settings={"guard.window": 9})
    with pytest.raises(KeyboardInterrupt):
        module.ablate(longer)
    assert done[12:] == ["ablations-nano-full-1"]
    run = plan_runs(longer)[6]
    assert not run.is_done()
    assert run.seconds() > 0


def test_the_interval_of_repeated_runs_knows_both_sources_of_chance() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.normal(20, 2, 200)
    alike = np.stack([pictures, pictures, pictures])
    spread = alike + np.array([[-3.0], [0.0], [3.0]])
    one, two = bootstrap_crossed(alike), bootstrap_crossed(spread)
    assert one.mean == pytest.approx(pictures.mean())
    half = 1.96 * pictures.std() / np.sqrt(200)
    assert one.high - one.mean == pytest.approx(half, rel=0.15)
    assert two.high - two.low > 4 * (one.high - one.low)
    assert one.n == 200
    assert bootstrap_crossed(alike[:, ::-1]) == pytest.approx(one)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_crossed(np.zeros((0, 3)))


def test_one_lucky_seed_is_no_proof() -> None:
    base = np.random.default_rng(0).normal(20, 2, (3, 40))
    variants = {
        "better": base + 1,
        "lucky": base + np.array([[-0.1], [-0.1], [3.0]]),
        "same": base,
    }
    found = compare_variants({"full": base} | variants, "full")
    assert {name: mark("psnr", found[name]) for name in found} == {
        "full": "",
        "better": " better",
        "lucky": "",
        "same": "",
    }
    assert mark("delta_e", found["better"]) == " worse"
    assert found["lucky"].p < 0.05, "by the pictures alone it would be"
