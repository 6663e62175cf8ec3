"""How fast devices can compute at most, by their makers' data sheets."""

from __future__ import annotations

import torch

HALF_PRECISION_TFLOPS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "A40": 150,
    "RTX A6000": 155,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bfloat16 products with fp32 sums, 10^12 operations per second, by part of the name."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Highest operations per second of a device in this precision.

    Returns:
        None for CPUs, for fp32 (of which PyTorch runs convolutions, but not products, in TF32) and
        for GPUs that are not in the table.
    """
    if device.type != "cuda" or precision == "fp32":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(device_name: str) -> float | None:
    """Peak of a GPU by the name its driver gives, ``NVIDIA A100-SXM4-80GB`` for example."""
    words = f" {device_name.replace('-', ' ')} "
    for part, tflops in HALF_PRECISION_TFLOPS.items():
        if f" {part} " in words:
            return tflops * 1e12
    return None
