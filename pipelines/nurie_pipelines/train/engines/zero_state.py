"""What a worker holds under ZeRO: where DeepSpeed keeps fp32 weights and the optimizer's state.

ZeRO 1 and 2 keep parameters whole on every worker, and divide one flat fp32 copy of each parameter
group; ZeRO 3 divides each parameter. Muon's momentum, which needs whole matrices, is an exception:
a worker keeps it whole for every matrix of which it holds a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nurie.checkpoints.sharded import WEIGHT, Fragment, ShardedState

_MOMENTUM = "momentum_buffer"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class _ZeroState:
    """What both have.

    Args:
        parameters: Trained parameters by name.
        zero: DeepSpeed's optimizer around ours.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], zero: Any) -> None:
        self._parameters = parameters
        self._zero = zero
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def optimizer_steps(self) -> float:
        """Steps that the optimizer counts."""
        counts = [kept["step"] for kept in self._zero.optimizer.state.values() if "step" in kept]
        return float(counts[0]) if counts else 0.0

    def _set_optimizer_steps(self, steps: float) -> None:
        for flat, kept in self._zero.optimizer.state.items():
            if "exp_avg" in kept:
                kept["step"] = torch.tensor(steps, dtype=torch.float32, device=flat.device)


class ReplicatedState(_ZeroState):
    """ZeRO 1 and 2."""

    def fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        for name, parameter in self._parameters.items():
            mapping: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
            if mapping is None:
                yield Fragment(name, WEIGHT, torch.empty(0), parameter.shape)
            else:
                start = mapping.lp_fragment_address.start
                yield Fragment(name, WEIGHT, mapping.hp_fragment, parameter.shape, start)

    def optimizer_fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        for flat, parameters in self._groups():
            kept = self._zero.optimizer.state[flat]
            for state, values in kept.items():
                if state == _MOMENTUM:
                    yield from self._momentum(parameters, values)
                elif values.shape == flat.shape:
                    for parameter in parameters:
                        yield self._part(parameter, state, values)

    def load(self, state: ShardedState, optimizer_steps: float) -> None:
        """See ``Engine``."""
        for name, parameter in self._parameters.items():
            parameter.copy_(state.whole(name, WEIGHT))
        for fragment in self.fragments():
            _fill(fragment, state)
        for flat, parameters in self._groups():
            kept = self._zero.optimizer.state[flat]
            known = (state.optimizer_states(self._names[id(p)]) for p in parameters)
            for key in sorted(set().union(*known)):
                if key == _MOMENTUM:
                    wholes = [state.part(self._names[id(p)], key, 0, p.numel()) for p in parameters]
                    kept[key] = torch.cat(wholes).to(flat.device)
                    continue
                kept[key] = torch.zeros_like(flat)
                for parameter in parameters:
                    _fill(self._part(parameter, key, kept[key]), state)
        self._set_optimizer_steps(optimizer_steps)

    def _groups(self) -> Iterator[tuple[torch.Tensor, list[nn.Parameter]]]:
        """Every flat fp32 tensor and the parameters of which it holds a part, in order."""
        zero = self._zero
        return zip(zero.single_partition_of_fp32_groups, zero.params_in_partition, strict=True)

    def _part(self, parameter: nn.Parameter, state: str, flat: torch.Tensor) -> Fragment:
        mapping: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        place = mapping.hp_fragment_address
        values = flat.narrow(0, place.start, place.numel)
        start = mapping.lp_fragment_address.start
        return Fragment(self._names[id(parameter)], state, values, parameter.shape, start)

    def _momentum(self, parameters: list[nn.Parameter], values: torch.Tensor) -> Iterator[Fragment]:
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, whole in zip(parameters, values.split(sizes), strict=True):
            yield Fragment(self._names[id(parameter)], _MOMENTUM, whole, parameter.shape)


class PartitionedState(_ZeroState):
    """ZeRO 3 (AdamW)."""

    def fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        return (self._part(name, each, None) for name, each in self._parameters.items())

    def optimizer_fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        if not any("exp_avg" in kept for kept in self._zero.optimizer.state.values()):
            return  # no step has been taken
        for name, parameter in self._parameters.items():
            for state in _MOMENTS:
                yield self._part(name, parameter, state)

    def load(self, state: ShardedState, optimizer_steps: float) -> None:
        """See ``Engine``."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        for flat in self._zero.fp32_partitioned_groups_flat:
            for key in _MOMENTS:
                self._zero.optimizer.state[flat].setdefault(key, torch.zeros_like(flat))
        for name, parameter in self._parameters.items():
            part: Any = parameter
            known = state.optimizer_states(name)
            for key in (WEIGHT, *(each for each in _MOMENTS if each in known)):
                fragment = self._part(name, parameter, None if key == WEIGHT else key)
                padded = torch.zeros(part.ds_tensor.numel())
                length = fragment.values.numel()
                padded[:length] = state.part(name, key, fragment.start, length)
                padded = padded.to(part.ds_tensor.device)
                if key == WEIGHT:
                    part.ds_tensor.data.copy_(padded)
                    safe_set_local_fp32_param(parameter, padded)
                else:
                    safe_set_local_optimizer_state(parameter, padded, key)
        self._set_optimizer_steps(optimizer_steps)

    def _part(self, name: str, parameter: nn.Parameter, state: str | None) -> Fragment:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        held: Any = (
            safe_get_local_fp32_param(parameter)
            if state is None
            else safe_get_local_optimizer_state(parameter, state)
        )
        part: Any = parameter
        start = held.numel() * torch.distributed.get_rank()
        # Pieces have one length; what lies behind the parameter's end is filling.
        length = max(0, min(held.numel(), part.ds_numel - start))
        return Fragment(name, state or WEIGHT, held[:length], part.ds_shape, start)


def _fill(fragment: Fragment, state: ShardedState) -> None:
    length = fragment.values.numel()
    if length:
        fragment.values.copy_(state.part(fragment.name, fragment.state, fragment.start, length))
