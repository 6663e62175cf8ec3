"""Preference studies: built blind, answered over HTTP, evaluated with known outcomes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

from nurie.config.evaluate import NetworksConfig
from nurie.evaluation.preference import (
    Choice,
    binomial_p,
    bradley_terry,
    evaluate_choices,
    krippendorff_alpha,
)
from nurie_cli import main as cli
from nurie_pipelines.evaluate.actor import Score
from nurie_pipelines.evaluate.job import load_results
from nurie_pipelines.evaluate.manifest import manifest_tasks, read_entries
from nurie_pipelines.evaluate.outputs import _write_rows
from nurie_pipelines.evaluate.store import ResultStore
from nurie_pipelines.evaluate.study import StudyError, build_study, report_study
from nurie_serve.keys import Keyring, add_key, revoke_key
from nurie_serve.study.app import StudyServerError, build_app, serve_study

# Strengths and agreement


def test_the_strength_of_two_is_the_logarithm_of_the_odds() -> None:
    found = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert found[0] - found[1] == pytest.approx(math.log(30.5 / 10.5))
    assert found.sum() == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()


def test_strengths_satisfy_the_likelihood_equations() -> None:
    wins = np.array([[0, 8, 9], [4, 0, 7], [3, 5, 0]], float)
    strengths = np.exp(bradley_terry(wins))
    with_prior = wins + 0.5 * (1 - np.eye(3))
    games = with_prior + with_prior.T
    expected = (games * strengths[:, None] / (strengths[:, None] + strengths)).sum(1)
    np.testing.assert_allclose(expected, with_prior.sum(1), rtol=1e-6)


def test_alpha_by_hand() -> None:
    # Krippendorff's own example of two observers and binary data without gaps: alpha = 0.095.
    one, two = "0100000000", "1110010010"
    ratings = [(str(i), value) for values in (one, two) for i, value in enumerate(values)]
    assert krippendorff_alpha(ratings) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha([("a", "x"), ("a", "x"), ("b", "y"), ("b", "y")]) == 1.0
    assert krippendorff_alpha([("a", "x"), ("b", "y")]) is None
    assert binomial_p(9, 10) == pytest.approx(2 * 11 / 1024)
    assert binomial_p(5, 10) == 1.0


def test_raters_who_fail_the_checks_do_not_count() -> None:
    good = [Choice(f"r{r}", f"i{i}", "a", "b") for r in range(4) for i in range(10)]
    bad = [Choice("bad", f"i{i}", "b", "a") for i in range(10)]
    checks = {"bad": [True, False, False], "r0": [True, True, True]}
    found = evaluate_choices(good + bad, checks)
    assert found.excluded == {"bad": "1 of 3 attention checks right"}
    assert found.pairs == {("a", "b"): (1.0, 40, pytest.approx(0.0, abs=1e-9))}
    assert found.strengths["a"].low > found.strengths["b"].high
    with pytest.raises(ValueError, match="no answer counts"):
        evaluate_choices(bad, checks)


# A study from its pictures to its report


@pytest.fixture
def evaluations(tmp_path: Path) -> list[Path]:
    """Two evaluations of the same six sketches, without Ray."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        for kind in ("sketch", "reference", "one", "two"):
            colour = rng.integers(256, size=(4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(colour).save(pictures / f"{kind}{number}.png")
    folders = []
    for name in ("one", "two"):
        results = tmp_path / f"{name}-results"
        results.mkdir()
        lines = [
            {
                "sketch": f"../pictures/sketch{n}.png",
                "reference": f"../pictures/reference{n}.png",
                "result": f"../pictures/{name}{n}.png",
                "protocol": "wrong",
                "id": f"s{n}",
            }
            for n in range(6)
        ]
        (results / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
        folder = tmp_path / name
        tasks = manifest_tasks(read_entries(results))
        store = ResultStore(folder)
        store.claim({})
        made = load_results(pa.table({"task": [task.to_json() for task in tasks]}), results)
        assert list(store.add([Score(results, NetworksConfig(), False)(made)])) == [6]
        _write_rows(list(store.rows()), folder / "per_sample.parquet")
        (folder / "metrics.json").write_text(json.dumps({"results": str(results)}))
        folders.append(folder)
    return folders


@pytest.fixture
def study(evaluations: list[Path], tmp_path: Path) -> Path:
    options = {"num_pairs": 6, "num_checks": 2, "protocol": "wrong", "question": "?", "seed": 0}
    return build_study(evaluations, tmp_path / "study", **options)


def test_a_study_is_blind(study: Path) -> None:
    public = json.loads((study / "study.json").read_text())
    key = json.loads((study / "key.json").read_text())
    assert len(public["items"]) == 8
    assert key["systems"] == ["one", "two"]
    assert len(key["checks"]) == 2
    text = (study / "study.json").read_text()
    assert "check" not in text
    assert "system" not in text
    for item in public["items"]:
        for field in ("sketch", "reference", "one", "two"):
            assert (study / "pictures" / item[field]).is_file()
        if item["id"] not in key["checks"]:
            assert {key["pictures"][item["one"]], key["pictures"][item["two"]]} == {"one", "two"}
    assert len({item["one"] for item in public["items"]}) == 8


def answer_all(client: TestClient, study: Path, rater: str, favourite: str, **headers) -> None:
    key = json.loads((study / "key.json").read_text())
    for item in client.get("/study.json", headers=headers).json()["items"]:
        wanted = [p for p in (item["one"], item["two"]) if key["pictures"][p] == favourite]
        chosen = key["checks"].get(item["id"]) or wanted[0]
        body = {"item": item["id"], "left": item["one"], "chosen": chosen, "rater": rater}
        sent = client.post("/answers", json=body | {"milliseconds": 900}, headers=headers)
        assert sent.status_code == 204


def test_answers_become_a_report(study: Path, capsys) -> None:
    client = TestClient(build_app(study, None))
    for rater in ("ann", "bob", "cyd"):
        answer_all(client, study, rater, "two")
    found = report_study(study)
    assert found.strengths["two"].mean > found.strengths["one"].mean
    assert found.pairs["one", "two"][:2] == (0.0, 18)
    assert found.agreement == 1.0
    answer_all(client, study, "ann", "one")  # She thinks again: the later answers count.
    assert report_study(study).pairs["one", "two"][0] == pytest.approx(6 / 18)
    assert cli.main(["study", "report", str(study)]) == 0
    assert "| one to two | 33.3% | 18 |" in capsys.readouterr().out


def test_keys_guard_pictures_and_answers(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    key = add_key(file, "ann", "read")
    ended = add_key(file, "old", days=1e-9)
    client = TestClient(build_app(study, Keyring(file)))
    picture = next((study / "pictures").iterdir()).name
    assert client.get("/").status_code == 200
    assert client.get("/web/study.js").status_code == 200
    for path in ("/study.json", f"/pictures/{picture}"):
        assert client.get(path).status_code == 401
        for wrong in ("Bearer wrong", f"Bearer {ended}", f"Basic {key}"):
            assert client.get(path, headers={"Authorization": wrong}).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    answer_all(client, study, "somebody", "two", Authorization=f"Bearer {key}")
    lines = (study / "answers.jsonl").read_text().splitlines()
    assert {json.loads(line)["rater"] for line in lines} == {"ann"}
    with pytest.raises(StudyServerError, match="needs keys"):
        serve_study(study, "0.0.0.0", 1, None)
    revoke_key(file, "ann")
    assert client.get("/study.json", headers={"Authorization": f"Bearer {key}"}).status_code == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"item": "i9999"}, 422),
        ({"chosen": "key.json"}, 422),
        ({"rater": "../x"}, 422),
        ({"milliseconds": -1}, 422),
        ({"rater": "x" * 5000}, 413),
    ],
)
def test_wrong_answers_are_refused_and_not_kept(study: Path, change: dict, status: int) -> None:
    client = TestClient(build_app(study, None))
    item = client.get("/study.json").json()["items"][0]
    body = {"item": item["id"], "left": item["one"], "chosen": item["one"], "rater": "a"}
    assert client.post("/answers", json=body | {"milliseconds": 1} | change).status_code == status
    assert not (study / "answers.jsonl").exists()


def test_nothing_but_the_study_is_served(study: Path) -> None:
    client = TestClient(build_app(study, None))
    for path in ("/key.json", "/pictures/..%2Fkey.json", "/pictures/../key.json", "/answers.jsonl"):
        assert client.get(path).status_code in (404, 405)
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers
    item = client.get("/study.json").json()["items"][0]
    body = {"item": item["id"], "left": item["one"], "chosen": item["one"], "rater": "a"}
    headers = {"Origin": "http://evil.example"}
    assert client.post("/answers", json=body, headers=headers).status_code == 403


def test_what_is_no_study_says_so(evaluations: list[Path], study: Path, tmp_path: Path) -> None:
    options = {"num_pairs": 2, "num_checks": 0, "protocol": "own", "question": "?", "seed": 0}
    with pytest.raises(StudyError, match="never overwritten"):
        build_study(evaluations, study, **options)
    with pytest.raises(StudyError, match="in common under 'own'"):
        build_study(evaluations, tmp_path / "new", **options)
    with pytest.raises(StudyError, match="no finished evaluation"):
        build_study([tmp_path], tmp_path / "new", **options)
    with pytest.raises(StudyError, match="no answers yet"):
        report_study(study)
    with pytest.raises(StudyServerError, match="no study"):
        build_app(tmp_path, None)
