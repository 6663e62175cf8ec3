"""Cut a published tagger's graph: from tag scores back to the feature map before the pooling.

Published taggers end in scores. The map is found by the structure of the graph, not by names:
walking back from the scores, the first node that averages over places (not over channels) is the
global pooling, and its input is the map.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import helper, numpy_helper, shape_inference

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)

Layout = Literal["channels_first", "channels_last"]


class TaggerError(ValueError):
    """A tagger that cannot be used, and why."""


@dataclass(frozen=True)
class FeatureMap:
    """Where the feature map is in the graph.

    Attributes:
        tensor: Name of the tensor.
        layout: Where its channels are: the second axis, or the last.
    """

    tensor: str
    layout: Layout


def expose_feature_map(model: onnx.ModelProto) -> FeatureMap:
    """Add the feature map to the graph's outputs, in place.

    Args:
        model: A tagger whose first output are the scores.

    Returns:
        Which tensor it is.

    Raises:
        TaggerError: If no global pooling leads to the scores.
    """
    feature_map = find_feature_map(model)
    names = {output.name for output in model.graph.output}
    if feature_map.tensor not in names:
        info = helper.make_tensor_value_info(feature_map.tensor, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(info)
    return feature_map


def find_feature_map(model: onnx.ModelProto) -> FeatureMap:
    """Find the input of the last global pooling before the scores.

    Raises:
        TaggerError: If there is none.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = _constants(model)
    ranks = _ranks(model)
    waiting, seen = deque([model.graph.output[0].name]), set()
    while waiting:
        node = producers.get(waiting.popleft())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        layout = _pooling_layout(node, constants, ranks)
        if layout is not None:
            return FeatureMap(node.input[0], layout)
        waiting.extend(node.input)
    raise TaggerError(
        f"no global pooling leads to the output '{model.graph.output[0].name}': expected a tagger "
        "that averages its feature map (GlobalAveragePool, or ReduceMean over places) and then "
        "scores the tags"
    )


def make_batch_symbolic(model: onnx.ModelProto) -> bool:
    """Let a graph exported for a fixed batch take any batch, in place.

    Returns:
        Whether anything was fixed. A batch can also be baked into the middle of a graph, so a
        changed graph should be tried.
    """
    changed = False
    for value in [*model.graph.input, *model.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].HasField("dim_value"):
            changed |= True
            dimensions[0].dim_param = "batch"
    if changed:
        del model.graph.value_info[:]  # recorded for the old batch
        _free_reshapes(model)
    return changed


def _free_reshapes(model: onnx.ModelProto) -> None:
    """In constant target shapes that start with a batch of 1, let that axis be inferred."""
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in _constant_tensors(model, targets):
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size > 1 and shape[0] == 1 and (shape > 0).all():
            shape[0] = -1
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _constant_tensors(model: onnx.ModelProto, names: set[str]) -> list[onnx.TensorProto]:
    found = [tensor for tensor in model.graph.initializer if tensor.name in names]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in names:
            found += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    return found


def _constants(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Short lists of integers by name: the axes of reductions are among them."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    return {
        name: numpy_helper.to_array(tensor).reshape(-1).tolist()
        for name, tensor in tensors.items()
        if tensor.data_type in _INTEGERS and len(tensor.dims) <= 1
    }


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of axes by tensor, as far as shape inference gets."""
    graph = shape_inference.infer_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }


def _pooling_layout(
    node: onnx.NodeProto, constants: dict[str, list[int]], ranks: dict[str, int]
) -> Layout | None:
    """The layout of a pooling's input, or None for a node that is no pooling over places."""
    if node.op_type == "GlobalAveragePool":
        return "channels_first"
    if node.op_type != "ReduceMean":
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    from_input = constants.get(node.input[1], []) if len(node.input) > 1 else []
    axes = list(attributes.get("axes", from_input))
    rank = ranks.get(node.input[0], 4 if len(axes) == 2 else 3)
    places = sorted(axis % rank for axis in axes)
    if (rank, places) in ((4, [1, 2]), (3, [1])):
        return "channels_last"
    # Layer norms average over the last axis too, but keep it; a pooling over places drops it.
    drops = attributes.get("keepdims", 1) == 0
    if (rank, places) == (4, [2, 3]) or ((rank, places) == (3, [2]) and drops):
        return "channels_first"
    return None
