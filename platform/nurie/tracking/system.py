"""How busy a machine is, under the names that MLflow's page of system metrics shows."""

from __future__ import annotations

import json
import logging
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import psutil

from nurie.tracking.outbox import MetricOutbox

_log = logging.getLogger(__name__)
_MB = 1e6


class SystemMonitor:
    """A thread that appends a machine's state to a file, every few seconds, while it is open.

    Args:
        folder: Folder of an outbox, which sends the file.
        node: Name of the machine, ``node_1`` for example; MLflow groups charts by it (empty: the
            only machine).
        interval: Seconds between samples.
    """

    def __init__(self, folder: Path, node: str = "", interval: float = 10.0) -> None:
        self._path = folder / f"system{'-' if node else ''}{node}.jsonl"
        self._prefix = f"system/{node}/" if node else "system/"
        self._interval = interval
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def __enter__(self) -> SystemMonitor:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        step = _last_step(self._path)
        outbox = MetricOutbox(self._path)
        machine = Machine()
        while not self._closing.wait(self._interval):
            step += 1
            sample = machine.sample()
            try:
                outbox.append(step, {self._prefix + name: value for name, value in sample.items()})
            except OSError as error:
                # A full disk must not end the thread: space may come back.
                _log.warning("%s: %s", self._path, error)
        outbox.close()


class Machine:
    """This machine's load: of its CPUs since the last sample, of its network since the first."""

    def __init__(self) -> None:
        psutil.cpu_percent()
        self._network = psutil.net_io_counters()
        self._nvml, self._gpus = _gpus()

    def sample(self) -> dict[str, float]:
        """Load by MLflow's names; megabytes are 10^6 bytes."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_available_megabytes": disk.free / _MB,
        }
        now = psutil.net_io_counters()
        if now is not None and self._network is not None:
            received = now.bytes_recv - self._network.bytes_recv
            sent = now.bytes_sent - self._network.bytes_sent
            values["network_receive_megabytes"] = received / _MB
            values["network_transmit_megabytes"] = sent / _MB
        for index, gpu in enumerate(self._gpus):
            values |= {f"gpu_{index}_{name}": v for name, v in self._sample_gpu(gpu).items()}
        return values

    def _sample_gpu(self, gpu: Any) -> dict[str, float]:
        nvml = self._nvml
        assert nvml is not None
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
            watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
            return {
                "utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
                "memory_usage_megabytes": memory.used / _MB,
                "memory_usage_percentage": 100 * memory.used / memory.total,
                "power_usage_watts": watts,
                "power_usage_percentage": 1e5 * watts / nvml.nvmlDeviceGetEnforcedPowerLimit(gpu),
            }
        except nvml.NVMLError as error:
            _log.warning("a GPU does not tell its state: %s", error)
            return {}


def _gpus() -> tuple[ModuleType | None, list[Any]]:
    """NVIDIA's management library and its GPUs, where both are there."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except pynvml.NVMLError:
        return None, []


def _last_step(path: Path) -> int:
    """Step of the last complete line: a restarted monitor goes on counting."""
    if not path.exists():
        return 0
    whole = [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}}")]
    return json.loads(whole[-1])["step"] if whole else 0
