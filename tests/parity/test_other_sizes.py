"""The comparison itself: other sizes than the reference's go through, and a difference is found.

The expected outputs are our own, so this says nothing about the published model; it holds the
mapping of names, the sizes and the verdict.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nurie.checkpoints.parity import check_parity, compute_outputs, load_modules, parity_config
from nurie.checkpoints.transfer import builders
from nurie_cli.main import main
from tests.released import released_names
from tests.tiny import normal, randomise

SIZES = {
    "model_channels": 32,
    "head_dim": 8,
    "depth": [1, 2, 1],
    "context_dim": 40,
    "adm": 48,
    "bg_adm": 32,
    "enc_head_dim": 32,
    "clip_dim": 24,
    "clip_tokens": 30,
    "tag_dim": 20,
    "tokens": 25,
    "proj_head_dim": 8,
    "gram_ids": [1, 9],
}
BATCH, HEIGHT, WIDTH = 2, 24, 8


def inputs() -> dict[str, torch.Tensor]:
    tokens, width = SIZES["tokens"], SIZES["context_dim"]
    return {
        "timesteps": torch.tensor([5, 900]),
        "added_cond": normal(BATCH, SIZES["adm"], seed=1),
        "background_added_cond": normal(BATCH, SIZES["bg_adm"], seed=2),
        "background_encoder_input": normal(BATCH, 6, HEIGHT, WIDTH, seed=3),
        "background_tokens": normal(BATCH, tokens, width, seed=4),
        "clip_tokens": normal(BATCH, SIZES["clip_tokens"], SIZES["clip_dim"], seed=5),
        "foreground_latents": normal(BATCH, 4, HEIGHT, WIDTH, seed=6),
        "foreground_mask": normal(BATCH, 1, 8 * HEIGHT, 8 * WIDTH, seed=7).sigmoid(),
        "latents": normal(BATCH, 4, HEIGHT, WIDTH, seed=8),
        "mask_latent": normal(BATCH, 1, HEIGHT, WIDTH, seed=9).sigmoid(),
        "sketch": normal(BATCH, 3, 8 * HEIGHT, 8 * WIDTH, seed=10),
        "tag_tokens": normal(BATCH, tokens, SIZES["tag_dim"], seed=11),
    }


def released_weights() -> dict[str, torch.Tensor]:
    weights = {}
    config = parity_config(SIZES)
    plain = {"sketch_encoder": "control_encoder.", "reference_projection": "proj."}
    mapped = {
        "unet": "model.diffusion_model.",
        "foreground_adapter": "fg_encoder.",
        "background_encoder": "bg_encoder.",
    }
    for name, build in builders(config).items():
        state = randomise(build()).state_dict()
        if name in plain:
            for key, value in state.items():
                weights[plain[name] + key.replace("stem.", "model.", 1)] = value
            continue
        names = released_names(build(), mapped[name], config.unet.layers_per_block)
        for key, value in state.items():
            injected = key.replace("injection.layers.", "model.diffusion_model.map_modules.")
            weights[names.get(key, injected)] = value
    return weights


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights, given = released_weights(), inputs()
    config = parity_config(SIZES)
    outputs = compute_outputs(load_modules(weights, config), given, config)
    tensors = {f"weights.{key}": value for key, value in weights.items()}
    tensors |= {f"in.{key}": value for key, value in given.items()}
    tensors |= {f"out.{key}": value for key, value in outputs.items()}
    path = tmp_path_factory.mktemp("parity") / "other.safetensors"
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, path, {"config": json.dumps(SIZES)}
    )
    return path


def changed(reference: Path, path: Path, name: str, value: torch.Tensor | None) -> Path:
    with safe_open(reference, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    save_file(tensors, path, metadata)
    return path


def test_other_sizes_go_through(reference: Path) -> None:
    rows = list(check_parity(reference))
    assert len(rows) > 30 and all(row.ok for row in rows)


def test_the_command_ends_with_1_when_an_output_differs(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "parity", str(reference)]) == 0
    with safe_open(reference, framework="pt") as file:
        value = file.get_tensor("out.unet_split")
    value[0, 0, 0, 0] += 1e-3
    wrong = changed(reference, tmp_path / "wrong.safetensors", "out.unet_split", value)
    assert main(["models", "parity", str(wrong)]) == 1
    assert "1 over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights.proj.norm.weight", None, "reference_projection: missing"),
        ("in.sketch", None, "in.sketch: missing"),
        ("out.unknown", torch.zeros(1), "unknown output 'out.unknown'"),
    ],
)
def test_incomplete_files_are_named(
    reference: Path, tmp_path: Path, name: str, value: torch.Tensor | None, message: str
) -> None:
    wrong = changed(reference, tmp_path / "wrong.safetensors", name, value)
    with pytest.raises(ValueError, match=message):
        list(check_parity(wrong))
