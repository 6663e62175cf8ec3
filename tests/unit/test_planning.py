"""The plan of a run against what was counted and measured in other ways."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import compare_engines, compare_stages
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import BackboneStage, EngineConfig, GramConfig, Stage, TrainConfig
from nurie.models.autoencoder import build_vae, encode_latents
from nurie.planning.gpus import GPUS, find_gpu
from nurie.planning.memory import (
    BUCKET_ELEMENTS,
    LIVE_ELEMENTS,
    Way,
    all_ways,
    holdings,
    stage_size,
)
from nurie.planning.operations import operations_at, write_operations
from nurie.planning.phases import gram_phases
from nurie.planning.plan import plan_run
from nurie.planning.results import Machine
from nurie.planning.trace import example_batch, meta_stage, trace_step
from nurie.training.draws import row_generators
from nurie.training.stages import build_stage
from nurie_cli.plan_tables import as_json
from tests.tiny import CONFIGS, tiny_config, tiny_model


def tiny_run() -> TrainConfig:
    run = load_config(CONFIGS / "train" / "nano.yaml")
    assert isinstance(run, TrainConfig)
    return run.model_copy(update={"model": tiny_config()})


STAGES = {stage.kind: stage for stage in tiny_run().stages}


@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_memory_is_what_a_real_step_takes(preset, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for row in compare_stages(preset):
        assert row.ratio == pytest.approx(1, abs=0.15), row


@pytest.mark.slow
def test_memory_is_what_deepspeed_takes_on_two_workers(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for row in compare_engines("nano", (2, 3)):
        assert row.ratio == pytest.approx(1, abs=0.15), row


def test_deepspeeds_buffers_have_their_default_size():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from nurie_pipelines.train.deepspeed_json import deepspeed_config

    generated = deepspeed_config(STAGES["backbone"], EngineConfig(zero_stage=3), 2)
    zero = DeepSpeedZeroConfig(**generated["zero_optimization"])
    assert (zero.reduce_bucket_size, zero.max_live_parameters) == (BUCKET_ELEMENTS, LIVE_ELEMENTS)
    assert not zero.overlap_comm or zero.stage == 3  # overlap would double the bucket


@pytest.mark.parametrize("kind", STAGES)
def test_operations_are_those_of_a_real_step(kind):
    settings = STAGES[kind]
    vae = build_vae(tiny_config().vae)
    stage = build_stage(tiny_model(), settings, lambda pixels: encode_latents(vae, pixels))
    batch = example_batch(tiny_config(), settings, 2)
    last = settings.steps - 1
    # Unfused attention is counted as its four products, without repeated ones.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        loss = stage(batch, last, row_generators(0, kind, last, range(2))).total
        forward = count.get_total_flops()
        loss.backward()
    trace = trace_step(tiny_config(), settings, last, 2)
    assert trace.forward_flops == forward
    backward = count.get_total_flops() - forward
    if kind == "foreground":
        # Its queries are frozen: the fused kernel computes their gradients all the same.
        assert backward < trace.backward_flops < 1.02 * backward
    else:
        assert trace.backward_flops == backward


def test_sdxl_agrees_with_the_count_by_hand():
    # Counted from the layers: 28.1 TFLOP for one branch, 43.2 for both with all exact savings,
    # 13.5 GB of activations per sample in bf16, 2.60 billion trained parameters.
    model = load_config(CONFIGS / "model" / "sdxl.yaml")
    assert isinstance(model, ModelConfig)
    settings = BackboneStage(steps=3)
    one, both = (
        trace_step(model, settings, step, 1, torch.bfloat16, autocast=True) for step in (0, 2)
    )
    assert one.forward_flops + one.backward_flops == pytest.approx(28.1e12, rel=0.005)
    assert both.forward_flops + both.backward_flops == pytest.approx(43.2e12, rel=0.005)
    assert both.activation_bytes == pytest.approx(13.5e9, rel=0.05)
    stage, _ = meta_stage(model, settings, torch.bfloat16)
    assert stage_size(stage, 0).trained == pytest.approx(2.60e9, rel=0.005)


def test_the_misaligned_branch_is_paid_from_its_first_step_on():
    def phases(**gram: float) -> list[tuple[str, int, int]]:
        return gram_phases(BackboneStage(steps=30, gram=GramConfig(**gram)))

    alone, both = "aligned branch", "both branches"
    assert phases(start_fraction=1 / 3) == [(alone, 10, 0), (both, 20, 10)]
    # A ramp starts at 0, which needs no second branch yet.
    assert phases(start_fraction=0, ramp_fraction=0.5) == [(alone, 1, 0), (both, 29, 1)]
    assert phases(start_fraction=0) == [(both, 30, 0)]
    assert phases(weight=0) == [(alone, 30, 0)]


def held(stage: Stage, way: Way):
    module, _ = meta_stage(tiny_config(), stage, torch.float32)
    return holdings(stage_size(module, 0), stage, way)


def test_states_are_divided_by_the_number_of_workers():
    stage = STAGES["backbone"]
    engines = {n: EngineConfig(zero_stage=3, precision="bf16", num_workers=n) for n in (1, 8)}
    one, eight = (held(stage, Way(engine)) for engine in engines.values())
    trained = one.gradients // 2
    assert (one.weights, one.gradients, one.optimizer) == (2 * trained, 2 * trained, 12 * trained)
    for part in ("weights", "gradients", "optimizer", "average"):
        assert getattr(eight, part) == getattr(one, part) // 8
    offloaded = held(stage, Way(engines[8].model_copy(update={"offload_optimizer": True})))
    assert (offloaded.optimizer, offloaded.host) == (0, 2 * trained)


def test_muon_keeps_one_moment_of_a_matrix():
    stage = STAGES["backbone"]
    muon = stage.optimizer.model_copy(update={"kind": "muon"})
    way = Way(EngineConfig(kind="torch", num_workers=1))
    sizes = [held(s, way).optimizer for s in (stage, stage.model_copy(update={"optimizer": muon}))]
    assert sizes[0] / 2 < sizes[1] < 0.6 * sizes[0]


def test_the_configured_engine_comes_first_and_none_twice():
    ways = all_ways(EngineConfig(kind="torch"))
    assert ways[0].label == "torch"
    assert len({way.label for way in ways}) == len(ways) == 7


@pytest.mark.parametrize("name", ["h100", "H100", "NVIDIA H100", "RTX 4090", "a100_80gb"])
def test_gpus_are_found_as_people_write_them(name):
    assert find_gpu(name).name in GPUS


def test_an_unknown_gpu_is_answered_with_names():
    with pytest.raises(ValueError, match=r"h10: .*did you mean h100 .*--peak-tflops"):
        find_gpu("h10")
    with pytest.raises(ValueError, match=r"did you mean a100-80gb or a100-40gb"):
        find_gpu("a100")


def test_hours_follow_from_operations_and_peak():
    run = tiny_run().model_copy(update={"stages": tuple(tiny_run().stages[:1])})
    machine = Machine(2, GPUS["h100"], utilisation=0.5, price_per_gpu_hour=3.0)
    plan = plan_run(run, machine)
    (stage,) = plan.stages
    work = sum(phase.steps * phase.flops for phase in stage.phases) * stage.batch_size
    assert stage.hours == pytest.approx(work / (2 * 67e12 * 0.5) / 3600)  # fp32
    assert stage.cost == pytest.approx(6 * stage.hours)
    assert stage.samples_per_second == pytest.approx(0.5 * 2 * 67e12 / stage.flops)
    printed = json.loads(as_json(plan))["stages"][0]
    assert printed["hours"] == stage.hours
    assert printed["ways"][0]["largest_micro_batch"] == 8
    with pytest.raises(ValueError, match="cannot be divided by 3 GPUs"):
        plan_run(run, Machine(3))


def test_recomputing_blocks_saves_activations_and_costs_forward_passes():
    settings = STAGES["backbone"]
    kept, again = (
        trace_step(tiny_config(), settings, settings.steps - 1, 2, recompute=recompute)
        for recompute in (False, True)
    )
    assert again.activation_bytes < 0.8 * kept.activation_bytes
    assert again.forward_flops == kept.forward_flops
    assert kept.backward_flops < again.backward_flops < kept.backward_flops + kept.forward_flops


def test_operations_are_looked_up_by_step(tmp_path):
    path = tmp_path / "operations.json"
    assert operations_at(path, 0) is None
    settings = BackboneStage(steps=4, gram=GramConfig(start_fraction=0.5))
    write_operations(path, tiny_config(), settings)
    early, late = operations_at(path, 1), operations_at(path, 2)
    assert early == operations_at(path, 0) and late == operations_at(path, 3)
    assert early is not None and late is not None and early < late < 2 * early
