"""Networks as ONNX files, so small that their values are known."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def mean_colour_network(path: Path) -> Path:
    """An encoder whose feature is the mean colour."""
    nodes = [helper.make_node("ReduceMean", ["x0", "axes"], ["y"], keepdims=0)]
    return _save(path, nodes, 1, ["n", 3])


def squared_error_network(path: Path) -> Path:
    """A distance of two pictures: their mean squared difference per channel."""
    nodes = [
        helper.make_node("Sub", ["x0", "x1"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["y"], keepdims=0),
    ]
    return _save(path, nodes, 2, ["n", 3])


def _save(path: Path, nodes: list, inputs: int, result: list) -> Path:
    pictures = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n", 3, "h", "w"])
        for i in range(inputs)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, result)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "g", pictures, [output], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path
