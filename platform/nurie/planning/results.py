"""What a plan says, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from nurie.planning.gpus import DEFAULT_HEADROOM, DEFAULT_UTILISATION, Gpu
from nurie.planning.memory import Holdings

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What the run is planned for.

    Args:
        num_gpus: GPUs, one worker each.
        gpu: Their kind; without one there is no time, no cost, and everything fits.
        utilisation: Share of the peak that a step reaches.
        headroom: Share of the memory left for the driver, workspaces and fragmentation.
        price_per_gpu_hour: In any currency.
    """

    num_gpus: int
    gpu: Gpu | None = None
    utilisation: float = DEFAULT_UTILISATION
    headroom: float = DEFAULT_HEADROOM
    price_per_gpu_hour: float | None = None

    @property
    def usable_bytes(self) -> float | None:
        """Memory of a GPU that a step may fill."""
        return None if self.gpu is None else self.gpu.memory_gib * GIB * (1 - self.headroom)


@dataclass(frozen=True)
class Phase:
    """Steps of a stage that compute the same.

    Args:
        name: What is special about them.
        steps: How many they are.
        forward_flops: Per sample.
        backward_flops: Per sample.
    """

    name: str
    steps: int
    forward_flops: float
    backward_flops: float

    @property
    def flops(self) -> float:
        """Per sample."""
        return self.forward_flops + self.backward_flops


@dataclass(frozen=True)
class MicroBatch:
    """One way to divide a worker's samples of an optimizer step.

    Args:
        size: Samples of a micro-batch.
        accumulation: Micro-batches per optimizer step.
        activation_bytes: What forward and backward pass hold at their peak.
        total_bytes: Peak of everything on the device.
        fits: Whether that is less than the usable memory; None where that is unknown.
    """

    size: int
    accumulation: int
    activation_bytes: int
    total_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class WayPlan:
    """Memory of one way to run the stage.

    Args:
        label: Its name.
        holdings: What does not depend on the micro-batch.
        micro_batches: All divisions of a worker's samples, smallest micro-batch first.
    """

    label: str
    holdings: Holdings
    micro_batches: tuple[MicroBatch, ...]

    @property
    def largest(self) -> MicroBatch | None:
        """The largest micro-batch that fits, or is not known not to."""
        fitting = [micro for micro in self.micro_batches if micro.fits is not False]
        return fitting[-1] if fitting else None


@dataclass(frozen=True)
class StagePlan:
    """One stage of the chain.

    Args:
        kind: The stage.
        steps: Optimizer steps.
        batch_size: Samples of an optimizer step, over all GPUs.
        accumulation: Micro-batches per optimizer step, as configured.
        trained: Parameters that are trained.
        frozen: Other parameters on the device, with the autoencoder's.
        parts: All parameters by component.
        phases: In the order of their steps.
        ways: The configured engine first.
        samples_per_second: Over all GPUs.
        hours: Of the whole stage.
        cost: Of the whole stage.
    """

    kind: str
    steps: int
    batch_size: int
    accumulation: int
    trained: int
    frozen: int
    parts: dict[str, int]
    phases: tuple[Phase, ...]
    ways: tuple[WayPlan, ...]
    samples_per_second: float | None
    hours: float | None
    cost: float | None

    @property
    def flops(self) -> float:
        """Mean per sample over the whole stage."""
        return sum(phase.steps * phase.flops for phase in self.phases) / self.steps


@dataclass(frozen=True)
class RunPlan:
    """A whole run.

    Args:
        name: Of the run.
        model: Preset.
        image_size: Side of a training picture, in pixels.
        precision: Of a step.
        machine: What it is planned for.
        peak_tflops: Of one GPU in that precision.
        stages: In their order.
    """

    name: str
    model: str
    image_size: int
    precision: str
    machine: Machine
    peak_tflops: float | None
    stages: tuple[StagePlan, ...]
