"""State in pieces: any division can be read as any other; gaps and damage are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nurie.checkpoints.manifest import CheckpointError
from nurie.checkpoints.sharded import AVERAGE, WEIGHT, Fragment, open_shards, write_shard
from tests.tiny import normal

WHOLE = normal(3, 5, 7)


def pieces(state: str, cuts: list[int]) -> list[Fragment]:
    """``WHOLE`` cut at these places."""
    flat = WHOLE.flatten()
    ends = [*cuts, flat.numel()]
    return [
        Fragment("a.weight", state, flat[start:end].clone(), WHOLE.shape, start)
        for start, end in zip([0, *cuts], ends, strict=True)
    ]


@pytest.mark.parametrize("cuts", [[], [1], [40, 41], [0, 50], [105]])
def test_any_division_gives_the_whole_and_any_part(tmp_path: Path, cuts: list[int]) -> None:
    for rank, piece in enumerate(pieces(WEIGHT, cuts)):
        write_shard(tmp_path / f"rank-{rank}.safetensors", [piece])
    with open_shards(tmp_path) as shards:
        assert torch.equal(shards.whole("a.weight", WEIGHT), WHOLE)
        assert torch.equal(shards.part("a.weight", WEIGHT, 30, 20), WHOLE.flatten()[30:50])
        assert shards.part("a.weight", WEIGHT, 30, 0).numel() == 0
        assert shards.names() == {"a.weight"}
        assert shards.optimizer_states("a.weight") == set()


def test_states_are_kept_apart_and_overlaps_are_fine(tmp_path: Path) -> None:
    (first,) = pieces(WEIGHT, [])
    for rank in range(2):
        momentum = Fragment("a.weight", "exp_avg", WHOLE.flatten() + 1, WHOLE.shape)
        average = pieces(AVERAGE, [50])[rank]
        write_shard(tmp_path / f"rank-{rank}.safetensors", [first, momentum, average])
    with open_shards(tmp_path) as shards:
        assert torch.equal(shards.whole("a.weight", "exp_avg"), WHOLE + 1)
        assert torch.equal(shards.whole("a.weight", AVERAGE), WHOLE)
        assert shards.optimizer_states("a.weight") == {"exp_avg"}


def test_a_gap_is_named(tmp_path: Path) -> None:
    first, _, last = pieces(WEIGHT, [20, 30])
    write_shard(tmp_path / "rank-0.safetensors", [first])
    write_shard(tmp_path / "rank-1.safetensors", [last])
    with open_shards(tmp_path) as shards:
        with pytest.raises(CheckpointError, match=r"10 of 105 values of a\.weight"):
            shards.whole("a.weight", WEIGHT)
        with pytest.raises(CheckpointError, match=r"b\.weight \(weight\) is in no shard"):
            shards.whole("b.weight", WEIGHT)


def test_folders_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no shards"), open_shards(tmp_path):
        pass
    (tmp_path / "rank-0.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match="rank-0"), open_shards(tmp_path):
        pass
