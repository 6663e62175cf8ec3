"""How busy a machine is, under the names that MLflow's page of system metrics shows."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from nurie.tracking.outbox import MetricOutbox

_log = logging.getLogger(__name__)
_MB = 1e6


@contextmanager
def system_monitor(folder: Path, node: str = "", interval: float = 10.0) -> Iterator[None]:
    """While this is open, a thread appends the machine's state to a file, every few seconds.

    Args:
        folder: Folder of an outbox, which sends the file.
        node: Name of the machine, ``node_1`` for example; MLflow groups charts by it (empty: the
            only machine).
        interval: Seconds between samples.
    """
    path = folder / (f"system-{node}.jsonl" if node else "system.jsonl")
    prefix = f"system/{node}/" if node else "system/"
    closing = threading.Event()
    arguments = (path, prefix, interval, closing)
    thread = threading.Thread(target=_watch, args=arguments, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()


def _watch(path: Path, prefix: str, interval: float, closing: threading.Event) -> None:
    step = _last_step(path)
    outbox = MetricOutbox(path)
    machine = Machine()
    while not closing.wait(interval):
        step += 1
        sample = machine.sample()
        try:
            outbox.append(step, {prefix + name: value for name, value in sample.items()})
        except OSError as error:
            # A full disk must not end the thread: space may come back.
            _log.warning("%s: %s", path, error)
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
