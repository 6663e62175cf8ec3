"""F9: the file system of the jobs is full; and replicas that come only when there is work."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.load.costs import noise
from benchmarks.load.crowd import Crowd, crowd
from benchmarks.load.figures import Figure
from benchmarks.load.server import COLORIZER, Server
from benchmarks.load.waiting import eventually
from nurie.config.serve import AutoscalingConfig

ROOM_MB = 16
MIN_FREE_MB = 4
_MOUNT = f'mkdir -p "$0" && mount -t tmpfs -o size={ROOM_MB}m none "$0" && exec "$@"'
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def full_disk() -> list[Figure]:
    """Pictures are sent until there is no room; then some are deleted."""
    if not _can_mount():
        note = "this system lets nobody mount a small file system for one process (unshare)"
        return [Figure("F9", "a full disk", None, "", note=note)]
    server = Server()
    jobs = server.config.jobs.model_copy(update={"min_free_bytes": MIN_FREE_MB * 2**20})
    server.config = server.config.model_copy(update={"jobs": jobs})
    folder = jobs.folder
    server.wrapper = (*_NAMESPACE, "sh", "-c", _MOUNT, folder)
    with server:
        return asyncio.run(_fill(server, Path(folder)))


async def _fill(server: Server, folder: Path) -> list[Figure]:
    picture = noise()["sketch"]
    async with crowd(server.address) as visitors:
        ids: list[str] = []
        while (answer := await _upload(visitors, picture))[0] == 201:
            ids.append(answer[1])
        full = answer[0]
        job = (await visitors.ask()).status
        live = (await visitors.send("GET", "/healthz")).status
        ready = (await visitors.send("GET", "/readyz")).status
        # The file system as the application sees it.
        seen = Path(f"/proc/{server.pid}/root{folder}")
        own = 2 if job == 202 else 0
        half = len(list((seen / "inputs").iterdir())) - len(ids) - own
        deleted = [await visitors.send("DELETE", f"/v1/uploads/{each}") for each in ids[:-1]]
        wrong = sum(each.status != 204 for each in deleted)
        again = (await visitors.ask("/v1/colorize", num_inference_steps=1)).status
        ready_again = (await visitors.send("GET", "/readyz")).status
    note = f"a file system of {ROOM_MB} MB, full after {len(ids)} pictures"
    return [
        Figure("F9", "a picture more", full, "status", 507, 507, note),
        Figure("F9", "a job more", job, "status", 202, 507, "a small one may still fit"),
        Figure("F9", "files without a row", half, "files", 0, 0, "a job has two"),
        Figure("F9", "alive while full", live, "status", 200, 200),
        Figure("F9", "ready while full", ready, "status", 503, 503, "reading and deleting go on"),
        Figure("F9", "pictures that could not be deleted", wrong, "pictures", at_most=0),
        Figure("F9", "a picture afterwards, without a restart", again, "status", 200, 200),
        Figure("F9", "ready afterwards", ready_again, "status", 200, 200),
    ]


async def _upload(visitors: Crowd, picture: bytes) -> tuple[int, str]:
    answer = await visitors.send("POST", "/v1/uploads", data={"image": picture})
    return answer.status, answer.document.get("upload_id", "")


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*_NAMESPACE, "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def scale_to_zero() -> list[Figure]:
    """Replicas go when there is nothing to do; the next request brings one back."""
    scaling = AutoscalingConfig(
        min_replicas=0, max_replicas=1, upscale_delay_s=0, downscale_delay_s=2
    )
    limits = {"deadline_s": 60.0}
    with Server("nano", 0.0, autoscaling=scaling, limits=limits) as server:
        began = time.monotonic()
        eventually(lambda: not server.processes(COLORIZER), 90, 0.2)
        gone = time.monotonic() - began
        return asyncio.run(_wake(server, gone))


async def _wake(server: Server, gone: float) -> list[Figure]:
    async with crowd(server.address) as visitors:
        ready = (await visitors.send("GET", "/readyz")).status
        answer = await visitors.ask("/v1/colorize")
    note = "min_replicas: 0, downscale_delay_s: 2; the real model of nano"
    return [
        Figure("zero", "from ready to no replica", gone, "s", note=note),
        Figure("zero", "ready without a replica", ready, "status", 200, 200),
        Figure("zero", "the first request afterwards", answer.status, "status", 200, 200),
        Figure("zero", "the same, answered after", answer.seconds, "s"),
    ]
