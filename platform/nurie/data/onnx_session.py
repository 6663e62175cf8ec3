"""Opening ONNX Runtime sessions, on the GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CUDA_DEVICE = Path("/dev/nvidia0")


def open_session(model: bytes | str, num_threads: int) -> onnxruntime.InferenceSession:
    """Open a session of a serialised graph or of a file.

    ONNX Runtime lists CUDA even on machines without a GPU, so the device itself is looked for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    providers = [_CUDA, _CPU] if _CUDA_DEVICE.exists() else [_CPU]
    return onnxruntime.InferenceSession(model, options, providers=providers)
