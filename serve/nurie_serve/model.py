"""Loading the model of a replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nurie.config.serve import ServeConfig
from nurie_serve.schema import ModelInfo

ModelLoader = Callable[[ServeConfig], tuple[Any, ModelInfo]]


def load_model(config: ServeConfig) -> tuple[Any, ModelInfo]:
    """Load the pipeline that the configuration names, its files verified by digest.

    Raises:
        CheckpointError: If a file is missing or altered.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging

    from nurie.checkpoints.manifest import manifest_digest
    from nurie.inference.folder import OWN_CONTROLS
    from nurie.inference.pipeline import ColorizationPipeline
    from nurie.tracking.registry import resolve_model

    torch.set_num_threads(config.num_threads)
    # It warns at every load about a list of modules that is empty.
    diffusers_logging.set_verbosity_error()
    device = "cuda" if config.num_gpus > 0 else "cpu"
    folder = resolve_model(config.model, config.tracking_uri)
    pipeline = ColorizationPipeline.from_pretrained(
        folder, torch_dtype=getattr(torch, config.dtype)
    )
    if config.vae_tile_size is not None:
        pipeline.enable_vae_tiling(config.vae_tile_size)
    if config.cpu_offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to(device)
    if config.reference_cache_size:
        pipeline.enable_reference_cache(config.reference_cache_size)
    pipeline.set_progress_bar_config(disable=True)
    name = config.model if config.model.startswith("models:/") else folder.name
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    own = {control: getattr(pipeline.config, f"default_{control}") for control in OWN_CONTROLS}
    return pipeline, ModelInfo(name, manifest_digest(folder), device, config.dtype, parts, own)
