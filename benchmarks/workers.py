"""Processes of a gloo group, as Ray Train starts them, without Ray."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_workers(body: Callable[..., Any], world: int, *args: Any) -> Any:
    """Run a function in every worker of a group; returns what the first one's gave.

    Args:
        body: A function of a module; it may use ``torch.distributed``.
        world: Workers, one torch thread each.
        args: What it is called with.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="nurie-workers-") as folder:
        result = Path(folder) / "result.pt"
        torch.multiprocessing.spawn(_worker, (world, port, body, args, result), nprocs=world)
        return torch.load(result, weights_only=False)


def _worker(
    rank: int, world: int, port: int, body: Callable[..., Any], args: tuple, result: Path
) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = body(*args)
    if rank == 0:
        torch.save(found, result)
    dist.barrier()
    dist.destroy_process_group()
