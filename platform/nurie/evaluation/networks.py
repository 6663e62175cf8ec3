"""Metrics that need somebody's network: LPIPS, likeness to the reference, features for KID and FID.

Networks come as files of the user's, never from the internet: ONNX, or a transformers folder of
safetensors for image encoders. Their digests stand in every report.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnxruntime.capi import (
    onnxruntime_pybind11_state as ort_errors,  # pyright: ignore[reportAttributeAccessIssue]
)

from nurie.checkpoints.manifest import file_digest
from nurie.config.evaluate import EncoderConfig, NetworksConfig
from nurie.data.onnx_session import open_session

_OPEN_ERRORS = (ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf)
_PICTURE_AXES = 4


class NetworkError(ValueError):
    """A network that cannot be used for what it is named for."""


class Networks:
    """The networks of an evaluation.

    Args:
        config: Where they are; none is needed.

    Raises:
        NetworkError: A file is missing or has another form.
    """

    def __init__(self, config: NetworksConfig) -> None:
        self.encoder = open_encoder(config.encoder) if config.encoder else None
        self.features = open_encoder(config.features) if config.features else self.encoder
        self.lpips = Lpips(config.lpips) if config.lpips else None

    def measure(
        self, result: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
    ) -> dict[str, float]:
        """``reference_likeness``, and where there is a truth ``truth_likeness`` and ``lpips``."""
        values = {}
        if self.encoder is not None:
            made = self.encoder(result)
            values["reference_likeness"] = cosine(made, self.encoder(reference))
            if truth is not None:
                values["truth_likeness"] = cosine(made, self.encoder(truth))
        if self.lpips is not None and truth is not None:
            values["lpips"] = self.lpips(result, truth)
        return values


def network_digests(config: NetworksConfig) -> dict[str, str]:
    """SHA-256 of every network that is used, by its role."""
    paths = {"lpips": config.lpips}
    for role, encoder in (("encoder", config.encoder), ("features", config.features)):
        paths[role] = encoder.path if encoder else None
    return {role: _digest(path) for role, path in paths.items() if path is not None}


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of the angle between two features, -1..1."""
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def open_encoder(config: EncoderConfig) -> FolderEncoder | OnnxEncoder:
    """Open an image encoder: one float vector for a picture uint8 [H, W, 3]."""
    return FolderEncoder(config) if config.path.is_dir() else OnnxEncoder(config)


class FolderEncoder:
    """A transformers folder of safetensors: CLIP's image tower, or DINO and others with a pooler.

    Raises:
        NetworkError: The folder holds no such model.
    """

    def __init__(self, config: EncoderConfig) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

        try:
            kind = AutoConfig.from_pretrained(config.path, local_files_only=True).model_type
            loader = CLIPVisionModelWithProjection if kind.startswith("clip") else AutoModel
            self._model = loader.from_pretrained(
                config.path, local_files_only=True, use_safetensors=True
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise NetworkError(
                f"{config.path}: no image encoder of transformers: {error}"
            ) from error
        settings = getattr(self._model.config, "vision_config", self._model.config)
        self._size = config.image_size or getattr(settings, "image_size", 224)
        self._config = config
        self._torch = torch

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Float32 [d]."""
        pixels = _normalised(image, self._size, self._config)
        with self._torch.no_grad():
            output = self._model(pixel_values=self._torch.from_numpy(pixels))
        found = getattr(output, "image_embeds", None)
        if found is None:
            found = getattr(output, "pooler_output", None)
        if found is None:
            found = output.last_hidden_state[:, 0]
        return found[0].float().numpy()


class _OnnxNetwork:
    """An ONNX file with so many picture inputs, ``N x 3 x H x W``."""

    def __init__(self, path: Path, num_inputs: int) -> None:
        if not path.is_file():
            raise NetworkError(f"{path}: there is no such file or folder")
        try:
            self._session = open_session(str(path), num_threads=1)
        except _OPEN_ERRORS as error:
            raise NetworkError(f"{path}: not an ONNX model ({error})") from error
        inputs = self._session.get_inputs()
        pictures = [entry for entry in inputs if len(entry.shape) == _PICTURE_AXES]
        if len(inputs) != num_inputs or len(pictures) != num_inputs:
            forms = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise NetworkError(f"{path}: takes {forms}; {num_inputs} x [N, 3, H, W] is needed")
        self._names = [entry.name for entry in inputs]
        side = inputs[0].shape[2]
        self.fixed_size = side if isinstance(side, int) else None

    def run(self, *pictures: np.ndarray) -> np.ndarray:
        """The first output, float32 [...]."""
        answer = self._session.run(None, dict(zip(self._names, pictures, strict=True)))[0]
        return np.asarray(answer, np.float32)


class OnnxEncoder(_OnnxNetwork):
    """An image encoder or feature extractor as ONNX, such as Inception's pool features."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.path, num_inputs=1)
        self._config = config
        self._size = config.image_size or self.fixed_size or 224

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Float32 [d]."""
        return self.run(_normalised(image, self._size, self._config)).reshape(-1)


class Lpips(_OnnxNetwork):
    """LPIPS (Zhang et al. 2018) as ONNX: two pictures ``N x 3 x H x W`` in -1..1 to a distance."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, num_inputs=2)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> float:
        """The distance; 0 for equal pictures."""
        pictures = [
            np.ascontiguousarray((image / np.float32(127.5) - 1).transpose(2, 0, 1)[None])
            for image in (first, second)
        ]
        return float(self.run(*(picture.astype(np.float32) for picture in pictures)).mean())


def _normalised(image: np.ndarray, size: int, config: EncoderConfig) -> np.ndarray:
    """The picture in a square, bicubic with antialias, float32 [1, 3, S, S]."""
    from nurie.models.image_encoder import resize

    pixels = resize(image[None], size).numpy()
    mean, std = (np.array(values, np.float32) for values in (config.mean, config.std))
    return ((pixels - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)).astype(np.float32)


def _digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise NetworkError(f"{path}: there is no safetensors file")
    return "+".join(file_digest(file) for file in files)
