"""The application under test, in a process of its own: `python -m benchmarks.load.application`.

It is what ``nurie serve`` starts, with another loader of the model: the real pipeline of ``nano``
with slower steps, or a model that sleeps for a known time and paints flat colours. Commands come as
JSON lines on the standard input, answers go to the standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import Response

from nurie.config.serve import ServeConfig
from nurie_serve import run
from nurie_serve.app import APP_NAME, bind
from nurie_serve.model import ModelLoader

DIES, HANGS_ONCE, TAKES_ALL_MEMORY, SLOW = 1_000_001, 1_000_002, 1_000_003, 1_000_004
"""Seeds of the sleeping model's bad jobs."""
SLOW_STEP_S = 0.5


def nano_loader(step_s: float, name: str | None = None) -> ModelLoader:
    """The real loader with slower steps.

    Args:
        step_s: Seconds that a step takes longer.
        name: The model's name (None: the replica's process id).
    """

    # Defined inside a function, so that replicas get it by value.
    def load(config: ServeConfig):  # noqa: ANN202
        import os
        import time
        from dataclasses import replace

        from nurie_serve.model import load_model

        pipeline, info = load_model(config)

        def slow(callback_on_step_end=None, **inputs):  # noqa: ANN001, ANN003, ANN202
            def on_step_end(*args):  # noqa: ANN002, ANN202
                time.sleep(step_s)
                return callback_on_step_end(*args) if callback_on_step_end else {}

            return pipeline(**inputs, callback_on_step_end=on_step_end)

        return slow, replace(info, name=name or str(os.getpid()))

    return load


def sleeping_loader(step_s: float, each_s: float, folder: str) -> ModelLoader:
    """A model that uses no processor: a step of n pictures takes ``step_s + n * each_s``.

    Args:
        step_s: Seconds of a step.
        each_s: Seconds of each picture in it.
        folder: Where it writes down that it has hung.
    """

    def load(config: ServeConfig):  # noqa: ANN202
        import os
        import time
        from types import SimpleNamespace

        from PIL import Image

        from nurie.inference.controls import CONTROLS
        from nurie.inference.layers import LayeredPicture
        from nurie_serve.schema import ModelInfo

        names = {control.name for control in CONTROLS}
        hung = Path(folder) / "hung"

        def misbehave(seeds: list[int]) -> None:
            if DIES in seeds:
                os._exit(1)
            if TAKES_ALL_MEMORY in seeds:
                raise MemoryError
            if HANGS_ONCE in seeds and not hung.exists():
                hung.touch()
                time.sleep(3600)

        def paint(  # noqa: ANN202
            sketch,  # noqa: ANN001
            reference,  # noqa: ANN001
            seed: list[int],
            num_inference_steps: int | None = None,
            callback_on_step_end=None,  # noqa: ANN001
            **others: Any,
        ):
            steps = num_inference_steps or 1
            for step in range(steps):
                time.sleep(SLOW_STEP_S if SLOW in seed else step_s + each_s * len(seed))
                misbehave(seed)
                if callback_on_step_end:
                    callback_on_step_end(paint, step, 0, {"predicted": sketch})
            layered = []
            for picture, number in zip(sketch, seed, strict=True):
                colours = Image.new("RGB", picture.size, (number % 256, number // 256 % 256, 90))
                grey = Image.new("L", picture.size, 255)
                layered.append(LayeredPicture(colours, grey, grey, 0.0))
            controls = {"num_inference_steps": steps}
            controls |= {name: value for name, value in others.items() if name in names}
            return SimpleNamespace(layered=layered, seeds=seed, controls=controls)

        info = ModelInfo(str(os.getpid()), "00" * 32, "cpu", "float32", ["sleep"], {})
        return paint, info

    return load


@ray_serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
class Echo:
    """The least that Ray Serve does with the same bodies: reads one, answers with some bytes."""

    async def __call__(self, request: Request) -> Response:
        """Handle one request."""
        body = await request.body()
        size = int(request.query_params["answer"])
        return Response(body[:size].ljust(size), media_type="image/png")


class Application:
    """The application and what may be done to it.

    Args:
        config: Its settings.
        model: ``nano`` or ``sleep``.
        step_s: See the loaders.
        each_s: See the loaders.
    """

    def __init__(self, config: ServeConfig, model: str, step_s: float, each_s: float) -> None:
        self._config = config
        self._model = model
        self._step_s = step_s
        self._each_s = each_s

    def start(self, name: str | None = None, **changes: Any) -> dict[str, Any]:
        """Deploy it, or a new version of it.

        Args:
            name: Of the new version's model.
            changes: Fields of the configuration.
        """
        self._config = ServeConfig(**(self._config.model_dump() | changes))
        folder = self._config.jobs.folder
        load = sleeping_loader(self._step_s, self._each_s, folder)
        if self._model == "nano":
            load = nano_loader(self._step_s, name)
        return {"address": run.start(self._config, bind(self._config, load))}

    def echo(self) -> dict[str, Any]:
        """Deploy the echo beside it."""
        ray_serve.run(Echo.bind(), name="echo", route_prefix="/echo")
        return {}

    def status(self) -> dict[str, Any]:
        """What Ray Serve says of it."""
        found = ray_serve.status().applications[APP_NAME]
        colorizer = found.deployments["Colorizer"]
        return {
            "status": found.status,
            "message": f"{found.message} {colorizer.message}",
            "replicas": sum(colorizer.replica_states.values()),
        }

    def stop(self) -> dict[str, Any]:
        """Drain it."""
        run.stop()
        return {}


def main() -> None:
    """Obey until the standard input ends."""
    given = json.loads(sys.argv[1])
    application = Application(ServeConfig(**given.pop("config")), **given)
    for line in sys.stdin:
        fields = json.loads(line)
        try:
            answer: dict[str, Any] = getattr(application, fields.pop("command"))(**fields)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(f"@{json.dumps(answer, default=str)}", flush=True)


if __name__ == "__main__":
    main()
