"""Memory and peak speed of GPUs, from their makers' data sheets."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: As ``--gpu`` takes it.
        memory_gib: What torch can use of its memory, in GiB: less than the printed capacity.
        bf16_tflops: Dense peak of its matrix units in bf16 and fp16 with fp32 sums, in TFLOP/s.
        fp32_tflops: Peak in fp32, in TFLOP/s; torch does not use TF32 unless told to.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float

    def peak_tflops(self, precision: str) -> float:
        """Peak for a run's precision."""
        return self.fp32_tflops if precision == "fp32" else self.bf16_tflops


# Peaks: data sheets and architecture papers of NVIDIA (Ampere GA100 and GA102, Ada AD102, Hopper
# H100, Blackwell, RTX Blackwell) and AMD (CDNA 3); where these give the speed with sparsity, half.
# Memory: what `torch.cuda.get_device_properties` reports, rounded down.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 178, 2250, 75),
        Gpu("h200", 139, 989, 67),
        Gpu("h100", 79, 989, 67),
        Gpu("h100-nvl", 93, 835, 60),
        Gpu("h100-pcie", 79, 756, 51),
        Gpu("a100-80gb", 79, 312, 19.5),
        Gpu("a100-40gb", 39, 312, 19.5),
        Gpu("mi300x", 191, 1307, 163),
        Gpu("l40s", 44, 362, 91.6),
        Gpu("l4", 22, 121, 30.3),
        Gpu("a10", 22, 125, 31.2),
        Gpu("rtx-6000-ada", 47, 364, 91.1),
        Gpu("rtx-a6000", 47, 155, 38.7),
        Gpu("rtx-5090", 31, 209, 104.8),
        Gpu("rtx-4090", 23.5, 165, 82.6),
        Gpu("rtx-3090", 23.5, 71, 35.6),
    )
}

DEFAULT_UTILISATION = 0.35
"""Share of the peak that a training step reaches: the best published logs of a diffusion U-Net
(MLPerf Training 4.1 and 5.0, Stable Diffusion v2 at 512 px) come to 0.34 on 8 H100 and to 0.34 to
0.365 on 8 H200, counted as here."""

DEFAULT_HEADROOM = 0.1
"""Share of the memory left for the driver, workspaces of libraries and fragmentation."""


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, in any case, with or without dashes and maker.

    Raises:
        ValueError: If there is none, with the names that come close.
    """
    plain = {_plain(known): known for known in GPUS}
    wanted = _plain(name)
    if wanted in plain:
        return GPUS[plain[wanted]]
    close = [plain[match] for match in plain if wanted and wanted in match]
    close = close or [plain[match] for match in difflib.get_close_matches(wanted, plain)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(
        f"--gpu {name}: not in the table; {hint}Known: {', '.join(GPUS)}. Any other GPU: "
        "--gpu-memory-gib GIB --peak-tflops TFLOPS"
    )


def gpu_of_driver(device_name: str) -> Gpu | None:
    """The GPU that a driver calls so, ``NVIDIA A100-SXM4-80GB`` for example (None: not known)."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    known = [gpu for gpu in GPUS.values() if set(gpu.name.split("-")) <= words]
    return max(known, key=lambda gpu: gpu.name.count("-"), default=None)


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removeprefix("nvidia").removeprefix("amd")
