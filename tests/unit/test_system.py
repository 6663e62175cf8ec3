"""System metrics under MLflow's names, counted on after a restart."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nurie.tracking.system import Machine, system_monitor


def watch(folder: Path, lines: int, node: str = "") -> list[dict]:
    """The lines of a monitor that has written so many more."""
    path = folder / (f"system-{node}.jsonl" if node else "system.jsonl")
    before = len(path.read_text().splitlines()) if path.exists() else 0
    with system_monitor(folder, node, interval=0.01):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = path.read_text().splitlines() if path.exists() else []
            if len(found) >= before + lines:
                break
            time.sleep(0.01)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_machine_is_watched_and_a_second_start_counts_on(tmp_path: Path) -> None:
    first = watch(tmp_path, 2)
    assert [line["step"] for line in first] == list(range(1, len(first) + 1))
    names = first[0]["metrics"]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(
        names
    )
    assert 0 <= names["system/system_memory_usage_percentage"] <= 100
    again = watch(tmp_path, 1)
    assert [line["step"] for line in again] == list(range(1, len(again) + 1))
    assert len(again) > len(first)


def test_other_nodes_have_files_and_names_of_their_own(tmp_path: Path) -> None:
    line = watch(tmp_path, 1, "node_1")[0]
    assert "system/node_1/cpu_utilization_percentage" in line["metrics"]
    assert not (tmp_path / "system.jsonl").exists()


def test_gpus_are_watched_where_the_library_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def usage(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError("lost")
        return 300_000

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=20e9, total=80e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=usage,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 600_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found = {k: v for k, v in Machine().sample().items() if k.startswith("gpu")}
    assert found == {
        "gpu_0_utilization_percentage": 97,
        "gpu_0_memory_usage_megabytes": 20_000,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_power_usage_watts": 300,
        "gpu_0_power_usage_percentage": 50,
    }
