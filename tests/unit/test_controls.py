"""The table of controls: ranges, texts, and that it is the pipeline's own list."""

from __future__ import annotations

import pytest

from nurie.inference.controls import CONTROLS, ControlError, parse_controls

TABLE = {control.name: control for control in CONTROLS}


def test_defaults_are_in_range() -> None:
    for control in CONTROLS:
        assert control.default is None or control.check(control.default) == control.default


def test_fills_in_defaults() -> None:
    values = parse_controls({"seed": 0, "guidance_scale": 3})
    assert values == {c.name: c.default for c in CONTROLS} | {"seed": 0, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 101),
        ("num_inference_steps", 1.5),
        ("num_inference_steps", "20"),
        ("num_inference_steps", True),
        ("num_inference_steps", None),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", 15.1),
        ("seed", -1),
        ("seed", 2**64),
        ("width", 1000),
        ("keep_size", 1),
    ],
)
def test_out_of_range_names_control_and_range(name: str, value: object) -> None:
    with pytest.raises(ControlError) as caught:
        parse_controls({name: value})
    assert caught.value.field == name
    assert TABLE[name].allowed in caught.value.message


def test_unknown_names_the_nearest() -> None:
    with pytest.raises(ControlError, match="did you mean guidance_scale") as caught:
        parse_controls({"guidence_scale": 1})
    assert caught.value.unknown


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("seed", " 7", 7), ("guidance_scale", "2", 2.0), ("keep_size", "True", True)],
)
def test_parses_text(name: str, text: str, value: object) -> None:
    parsed = TABLE[name].parse_text(text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(("name", "text"), [("seed", "1.0"), ("keep_size", "1"), ("width", "")])
def test_refuses_text(name: str, text: str) -> None:
    with pytest.raises(ControlError):
        TABLE[name].parse_text(text)
