"""ONNX models of the user's own that look at one picture: lines, a foreground mask, a score."""

from __future__ import annotations

import cv2
import numpy as np
from onnxruntime.capi import (
    onnxruntime_pybind11_state as ort_errors,  # pyright: ignore[reportAttributeAccessIssue]
)

from nurie.config.data import PictureInputConfig, PictureModelConfig, ScoreModelConfig
from nurie.data.onnx_session import open_session

_OPEN_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
)


class PictureModelError(ValueError):
    """A model that cannot be used for what it is named for."""


class _PictureModel:
    """Opens such a model and feeds it pictures.

    Args:
        config: The file and what it expects.

    Raises:
        PictureModelError: If the file is missing, is no ONNX model, or has another form.
    """

    def __init__(self, config: PictureInputConfig) -> None:
        self._input = config
        if not config.path.is_file():
            raise PictureModelError(f"{config.path}: there is no such file")
        try:
            # Also keeps the bytes independent of the number of cores.
            self._session = open_session(str(config.path), num_threads=1)
        except _OPEN_ERRORS as error:
            raise PictureModelError(f"{config.path}: not an ONNX model ({error})") from error
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            forms = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise PictureModelError(
                f"{config.path}: takes {forms}; one input B x 3 x H x W or B x H x W x 3 is needed"
            )
        self._name, self._channels_first = inputs[0].name, shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        self._fixed = (sides[0], sides[1]) if all(isinstance(s, int) for s in sides) else None

    def _answer(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """First output for a uint8 [H, W, 3], stretched to the model's own size or to ``size``."""
        height, width = self._fixed or size
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        pixels = small[..., ::-1] if self._input.bgr else small
        scaled = (pixels / np.float32(self._input.scale) - self._input.mean) / self._input.std
        batch = np.ascontiguousarray(scaled.astype(np.float32)[None])
        if self._channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return np.asarray(self._session.run(None, {self._name: batch})[0], np.float32)


class PictureScore(_PictureModel):
    """One number for a picture."""

    def __init__(self, config: ScoreModelConfig) -> None:
        super().__init__(config)
        self._config = config

    def __call__(self, image: np.ndarray) -> float:
        """The score of a picture.

        Args:
            image: sRGB picture, uint8 [H, W, 3].

        Raises:
            PictureModelError: If the model answers fewer numbers, or none.
        """
        side = self._config.image_size
        scores = self._answer(image, (side, side)).ravel()
        if len(scores) <= self._config.output_index:
            raise PictureModelError(
                f"{self._config.path}: answers {len(scores)} numbers; output_index is "
                f"{self._config.output_index}"
            )
        score = float(scores[self._config.output_index])
        if not np.isfinite(score):
            raise PictureModelError(f"{self._config.path}: answers {score}")
        return score


class PictureMap(_PictureModel):
    """A map of a picture of any size."""

    def __init__(self, config: PictureModelConfig) -> None:
        super().__init__(config)
        self._config = config

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of a picture.

        Args:
            image: sRGB picture, uint8 [H, W, 3].

        Returns:
            float32 [H, W] in 0..1.

        Raises:
            PictureModelError: If the model's answer is no map.
        """
        height, width = image.shape[:2]
        multiple = self._config.multiple_of
        rows, columns = (max(1, round(side / multiple)) for side in (height, width))
        answer = self._answer(image, (rows * multiple, columns * multiple))
        values = np.squeeze(answer)
        if values.ndim != 2:
            raise PictureModelError(
                f"{self._config.path}: answers {list(answer.shape)}; one value per pixel is needed"
            )
        values = values.clip(0, 1)
        large = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
        return 1 - large if self._config.invert else large
