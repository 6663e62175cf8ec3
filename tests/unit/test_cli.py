"""The command line: fast, helpful, and without a traceback for what the user can correct."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from nurie_cli import main as cli
from nurie_cli.processes import NurieProcess, StepError, free_port, last_line
from nurie_cli.settings import parse_overrides

ROOT = Path(__file__).parents[2]
NANO = "configs/train/nano.yaml"
HEAVY = ("torch", "ray", "mlflow", "diffusers", "deepspeed")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_building_the_parsers_imports_nothing_heavy():
    code = (
        "import sys; from nurie_cli.main import COMMANDS, build_parser\n"
        "for command in (None, *COMMANDS): build_parser(command)\n"
        f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, f"imports {result.stderr}"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"  nurie {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("nurie 0.")


def test_dry_run_shows_the_overridden_run(capsys):
    words = ["train", NANO, "--dry-run", "--engine.num-workers", "1", "--tracking.alias=null"]
    assert cli.main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["engine"]["num_workers"] == 1
    assert shown["tracking"]["alias"] is None


def test_dry_run_shows_deepspeeds_settings_and_the_way_to_the_plan(capsys):
    words = ["train", NANO, "--dry-run", "--from-scratch", "--engine.zero-stage", "3"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["init_from"] is None
    prefix = "# DeepSpeed, stage backbone: "
    (line,) = (line for line in shown.splitlines() if line.startswith(prefix))
    generated = json.loads(line.removeprefix(prefix))
    assert generated["zero_optimization"]["stage"] == 3
    assert generated["train_micro_batch_size_per_gpu"] == 8
    assert shown.splitlines()[-1].endswith(f"nurie plan {NANO} --engine.zero-stage 3 --gpu h100")


def test_a_plan_says_which_setting_makes_the_run_fit(tmp_path, capsys):
    run = tmp_path / "run.yaml"
    run.write_text(
        f"extends: {ROOT / NANO}\n"
        f"model: {{extends: {ROOT / 'configs/model/tiny.yaml'}}}\n"
        "stages: [{kind: backbone, steps: 9, batch_size: 8, gram: {weight: 0}}]\n"
        "engine: {kind: torch, num_workers: 1}\n"
    )
    machine = ["--gpu-memory-gib", "0.014", "--peak-tflops", "1"]
    assert cli.main(["plan", str(run), *machine, "--price-per-gpu-hour", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Time and cost" in shown
    flag = shown.split("is the largest that fits: ")[1].splitlines()[0]
    assert cli.main(["plan", str(run), *machine, *flag.split()]) == 0
    assert "is the largest that fits" not in capsys.readouterr().out


def test_what_config_show_prints_is_a_valid_config(capsys, tmp_path):
    assert cli.main(["config", "show", NANO]) == 0
    file = tmp_path / "shown.yaml"
    file.write_text(capsys.readouterr().out)
    assert cli.main(["config", "validate", str(file)]) == 0


def test_schema_explains_the_settings(capsys):
    assert cli.main(["config", "schema", "train"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["seed"]["description"] == "Seed of everything random."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", NANO, "--engin.num-workers", "1"],
            "engin: unknown setting; did you mean engine?",
        ),
        (["train", NANO, "--seed"], "seed: give it a value"),
        (["train", NANO, "extra"], "'extra' is neither a setting nor its value"),
        (["train", "gone.yaml"], "gone.yaml: no such file"),
        (["train", "configs/model/nano.yaml"], "needs a file of kind 'train'"),
        (["plan", NANO, "--gpu", "h10"], "--gpu h10: not in the table; did you mean h100"),
        (["plan", NANO, "--peak-tflops", "9"], "needs both --gpu-memory-gib and --peak-tflops"),
        (["plan", NANO, "--utilisation", "35"], "--utilisation 35: must be at least 0.001 and at"),
        (["data", "inspect", "gone"], "gone/manifest.json does not exist"),
        (["models", "verify", "configs"], "configs/MANIFEST.json: missing"),
        (["colorize", "gone.png", "--reference", "r.png", "-o", "o.png"], "gone.png: no such file"),
        (["colorize", "s.png", "--reference", "r.png", "-o", "o.png", "--seed", "x"], "seed: 'x'"),
    ],
)
def test_what_the_user_can_correct_is_one_error_line(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_validate_reports_all_problems_of_all_files(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("kind: model\nnaem: x\nunet: {head_dmi: 8}\n")
    (tmp_path / "worse.yml").write_text("kind: trian\n")
    assert cli.main(["config", "validate", NANO, str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "3 files, 2 with problems" in output.out
    for message in ("naem: unknown setting; did you mean name?", "did you mean head_dim?"):
        assert f"{tmp_path / 'bad.yaml'}: " in output.err
        assert message in output.err
    assert "worse.yml: kind: got 'trian'; did you mean train?" in output.err


def test_validate_checks_the_project_by_default(capsys):
    assert cli.main(["config", "validate"]) == 0
    listed = capsys.readouterr().out
    assert all(f"configs/{kind}/nano.yaml" in listed for kind in ("model", "train", "eval"))


def test_a_flag_that_no_command_has(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["models", "list", "--frobnicate"])
    assert caught.value.code == 2
    assert "--frobnicate" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    # json stands for any library: a ValueError that is not ours is no message for the user.
    monkeypatch.setattr("nurie_cli.commands.config.load_config", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["config", "show", NANO])


def test_submit_hands_the_words_after_the_dashes_on(monkeypatch):
    submitted = []

    def submit(words, address, **_):
        submitted.extend([words, address])
        return 7

    monkeypatch.setattr("nurie_pipelines.jobs.submit.submit", submit)
    words = ["train", NANO, "--stages.backbone.steps", "5"]
    assert cli.main(["submit", "--address", "http://head:8265", "--", *words]) == 7
    assert submitted == [words, "http://head:8265"]


@pytest.mark.parametrize(
    ("words", "file", "settings"),
    [
        ("serve", "configs/serve/nano.yaml", []),
        ("serve --port 8080", "configs/serve/nano.yaml", ["--port", "8080"]),
        ("serve --model=a --port 1", "configs/serve/nano.yaml", ["--model=a", "--port", "1"]),
        ("serve --model a b.yaml", "b.yaml", ["--model", "a"]),
        ("serve b.yaml --model a", "b.yaml", ["--model", "a"]),
        ("train --seed 3 b.yaml --name x", "b.yaml", ["--seed", "3", "--name", "x"]),
        ("train --dry-run b.yaml", "b.yaml", []),
    ],
)
def test_the_file_and_the_settings_come_in_any_order(words, file, settings, monkeypatch):
    from nurie_cli.commands import serve, train

    seen = []
    for module in (serve, train):
        monkeypatch.setattr(module, "run", lambda args: seen.append((args.config, args.settings)))
    assert cli.main(words.split()) == 0
    assert seen == [(file, settings)]


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--seed", "3"])
    assert "required: CONFIG" in capsys.readouterr().err


def test_override_values_are_yaml():
    words = ["--a.b-c", "[1, 2]", "--d=null", "--e", "-1", "--f", "1e-4", "--g=x: y: z"]
    expected = {"a.b_c": [1, 2], "d": None, "e": -1, "f": "1e-4", "g": "x: y: z"}
    assert parse_overrides(words, "file.yaml") == expected


def test_a_failed_step_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "train.log"
    with (
        NurieProcess(["train", "gone.yaml"], log) as process,
        pytest.raises(StepError, match="exit code 2") as caught,
    ):
        process.wait(lambda line: None)
    assert "gone.yaml: no such file" in str(caught.value)


def test_a_process_ends_with_its_block(tmp_path):
    with NurieProcess(
        ["mlflow", "--store", f"sqlite:///{tmp_path}/m.db"], tmp_path / "log"
    ) as process:
        assert process.is_running()
    assert not process.is_running()


def test_a_second_signal_does_not_cut_the_cleaning_up(tmp_path):
    code = (
        "import time; from pathlib import Path\n"
        "from nurie_cli.processes import NurieProcess, unwind_on_signals\n"
        "unwind_on_signals()\n"
        f"with NurieProcess(['mlflow', '--store', 'sqlite:///m.db'], Path('{tmp_path}/l')) as p:\n"
        "    print(p.pid, flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGTERM)
        parent.send_signal(signal.SIGINT)
        parent.send_signal(signal.SIGTERM)
        parent.wait(60)
    assert parent.returncode != 0
    assert not child.is_running()


def test_the_newest_line_of_a_progress_bar(tmp_path):
    log = tmp_path / "log"
    log.write_text("start\n 10%\r\x1b[2K\x1b[1m 20%\x1b[0m\r\n\x1b[?25h\n")
    assert last_line(log) == "20%"


def test_a_taken_port_is_avoided():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
