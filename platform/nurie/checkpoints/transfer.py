"""Model folders from other people's weights: the released checkpoint, or a stock SDXL.

Networks are built without memory (meta device); tensors go from file to file one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from nurie.checkpoints.manifest import CheckpointError
from nurie.checkpoints.released_keys import map_released_key, unet_key
from nurie.checkpoints.stream import Weights, open_weights, write_weights
from nurie.config.model import ModelConfig
from nurie.models.background_encoder import BackgroundEncoder
from nurie.models.folders import save_part
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

BACKBONE = ("unet", "sketch_encoder", "reference_projection")
_SINGLE_FILE_UNET = "model.diffusion_model."
Read = Callable[[str, tuple[int, ...]], torch.Tensor]


@dataclass
class PartReport:
    """Where the tensors of one component come from.

    Attributes:
        taken: Names of tensors taken as they are.
        reshaped: Taken with other dimensions but the same values (1x1 convolution and linear).
        fresh: Newly initialised: not there, or of another size.
        unused: Names in the source that have no place in ours.
    """

    taken: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def builders(config: ModelConfig) -> dict[str, Callable[[], ModelMixin]]:
    """Component -> what makes a fresh one."""
    return {
        "unet": lambda: ColorizationUNet.build(config.unet, config.vae.latent_channels),
        "sketch_encoder": lambda: SketchEncoder.build(config),
        "reference_projection": lambda: ReferenceProjection.build(config),
        "foreground_adapter": lambda: ForegroundAdapter.build(config),
        "background_encoder": lambda: BackgroundEncoder.build(config),
    }


def empty_parts(config: ModelConfig) -> dict[str, ModelMixin]:
    """Every component of a preset without memory for its weights (meta device)."""
    with torch.device("meta"):
        return {name: build() for name, build in builders(config).items()}


def convert_released(
    source: Path,
    config: ModelConfig,
    output: Path,
    dtype: torch.dtype = torch.float16,
    *,
    allow_pickle: bool = False,
) -> dict[str, PartReport]:
    """Convert a released single-file checkpoint to component folders.

    Args:
        source: The checkpoint.
        config: The preset it belongs to (released: ``sdxl``).
        output: Folder that receives one sub-folder per component found.
        dtype: Precision of the files.
        allow_pickle: Read a pickle.

    Returns:
        Component -> where its tensors come from; ``other`` counts what belongs to none.

    Raises:
        CheckpointError: Names the file and the tensors that are missing, of another shape, or
            not finite. Nothing is left in ``output`` of a component that does not fit.
    """
    with open_weights(source, allow_pickle=allow_pickle) as weights:
        names: dict[str, dict[str, str]] = {}
        other = PartReport()
        for name in weights.names():
            mapped = map_released_key(name, config.unet.layers_per_block)
            if mapped is None:
                other.unused.append(name)
            else:
                names.setdefault(mapped[0], {})[mapped[1]] = name
        missing = [part for part in BACKBONE if part not in names]
        if missing:
            raise CheckpointError(
                f"{source}: no tensors of {', '.join(missing)}; it is no released nurie checkpoint"
            )
        parts = {name: part for name, part in empty_parts(config).items() if name in names}
        # All shapes are checked before the first byte is written.
        reports = {
            name: _check_complete(weights, part, names[name], name) for name, part in parts.items()
        }
        for name, part in parts.items():
            read = _reader(weights, names[name])
            write_part(part, output / name, read, dtype)
    return {**reports, "other": other}


def start_from_sdxl(
    base: Path,
    config: ModelConfig,
    output: Path,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    allow_pickle: bool = False,
) -> dict[str, PartReport]:
    """Make the start of a training: the backbone with everything a stock SDXL can give.

    Args:
        base: Folder with ``unet/`` in diffusers' form, or a single file with its original names.
        config: The preset.
        output: Folder that receives ``unet``, ``sketch_encoder`` and ``reference_projection``.
        dtype: Precision of the files.
        seed: Of the fresh weights.
        allow_pickle: Read a pickle.

    Raises:
        CheckpointError: There is no U-Net, its weights are not finite, or nothing fits.
    """
    build = builders(config)
    with torch.device("meta"):
        unet = build["unet"]()
    path = base / "unet" if base.is_dir() else base
    torch.manual_seed(seed)
    reports = {}
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        names = _sdxl_names(weights, config.unet.layers_per_block)
        reports["unet"] = _plan(weights, unet, names)
        if not reports["unet"].taken:
            raise CheckpointError(f"{path}: none of its tensors fits the U-Net of {config.name}")
        fresh = set(reports["unet"].fresh)
        stored = _reader(weights, names)
        own = _initialiser(unet)

        def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return own(name, shape) if name in fresh else stored(name, shape)

        write_part(unet, output / "unet", read, dtype)
    for name in BACKBONE[1:]:
        part = build[name]()
        reports[name] = PartReport(fresh=list(part.state_dict()))
        save_part(part, output / name, dtype)
    return reports


def _sdxl_names(weights: Weights, layers_per_block: int) -> dict[str, str]:
    """Our name -> name in the source, for both forms of a stock U-Net."""
    found = weights.names()
    single = [name for name in found if name.startswith(_SINGLE_FILE_UNET)]
    if not single:
        return {name: name for name in found}
    return {
        unet_key(name.removeprefix(_SINGLE_FILE_UNET), layers_per_block): name for name in single
    }


def _plan(weights: Weights, part: nn.Module, names: dict[str, str]) -> PartReport:
    """Decide for every tensor of ours where it comes from."""
    report = PartReport()
    own = {name: tuple(value.shape) for name, value in part.state_dict().items()}
    for name, shape in own.items():
        given = weights.shape(names[name]) if name in names else None
        if given == shape:
            report.taken.append(name)
        elif given is not None and _squeezed(given) == _squeezed(shape):
            report.reshaped.append(name)
        else:
            report.fresh.append(name)
    report.unused = [source for name, source in names.items() if name not in own]
    return report


def _check_complete(
    weights: Weights, part: nn.Module, names: dict[str, str], component: str
) -> PartReport:
    report = _plan(weights, part, names)
    if report.fresh:
        name = report.fresh[0]
        found = weights.shape(names[name]) if name in names else "missing"
        wanted = tuple(part.state_dict()[name].shape)
        raise CheckpointError(
            f"{weights.path}: {len(report.fresh)} tensors of {component} do not fit the preset, "
            f"such as {names.get(name, name)}: {found}, wanted {wanted}"
        )
    return report


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the 1x1 of a pointwise convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _reader(weights: Weights, names: dict[str, str]) -> Read:
    """Read a tensor under our name, in our shape; it must be finite."""

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = weights.tensor(names[name])
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{weights.path}: {names[name]} holds values that are not finite")
        return tensor.reshape(shape)

    return read


def _initialiser(unet: nn.Module) -> Read:
    """Fresh values of a U-Net without memory, made layer by layer as they are asked for."""

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        owner_name, _, leaf = name.rpartition(".")
        owner = unet.get_submodule(owner_name)
        if getattr(owner, leaf).is_meta:
            owner.to_empty(device="cpu", recurse=False)
            owner.reset_parameters()  # type: ignore[operator]
        value = getattr(owner, leaf).detach()
        assert tuple(value.shape) == shape
        return value

    return make


def write_part(part: ModelMixin, folder: Path, read: Read, dtype: torch.dtype) -> None:
    """Write a component's folder, no more than one tensor in memory.

    Args:
        part: The component, with or without memory for its weights.
        folder: Target.
        read: Gives a tensor by name and shape.
        dtype: Precision of the file.
    """
    shapes = {name: tuple(value.shape) for name, value in part.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes.items():
            yield name, read(name, shape)

    write_weights(folder / SAFETENSORS_WEIGHTS_NAME, shapes, tensors(), dtype)
    part.save_config(folder)
