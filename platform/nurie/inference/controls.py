"""Every control of the colorization: the one list behind the CLI, the HTTP API and the page."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ControlValue = int | float | bool | str


class ControlError(ValueError):
    """A control that does not exist or a value outside its range.

    Attributes:
        field: Name of the control as given.
        message: What is wrong and what is allowed.
        unknown: True if there is no such control.
    """

    def __init__(self, field: str, message: str, *, unknown: bool = False) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.unknown = unknown


@dataclass(frozen=True)
class Control:
    """One control and all that a user interface needs to show it.

    A ``default`` of None means that the value is chosen when a picture is made: at random (seed),
    by the sketch (size), or by the model. Controls of one ``group`` are shown together.
    """

    name: str
    type: type[int] | type[float] | type[bool] | type[str]
    default: ControlValue | None
    help: str
    group: str = "basic"
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] | None = None

    @property
    def allowed(self) -> str:
        """The range in words, for error messages and help texts."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.type is bool:
            return "true or false"
        kind = "a whole number" if self.type is int else "a number"
        multiple = f", a multiple of {self.multiple_of}" if self.multiple_of else ""
        return f"{kind} from {self.minimum:g} to {self.maximum:g}{multiple}"

    def check(self, value: Any) -> ControlValue:
        """Return ``value`` in the control's type.

        Raises:
            ControlError: If the type is wrong (a string is never taken for a number, nor true for
                1) or the value is outside the range.
        """
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type or not self._in_range(value):
            raise ControlError(self.name, f"{value!r} is not {self.allowed}")
        return value

    def parse_text(self, text: str) -> ControlValue:
        """Read a value from a form field or a command line, then check it.

        Raises:
            ControlError: If the text is not a value of the control.
        """
        words = {"true": True, "false": False}
        try:
            value = words[text.strip().lower()] if self.type is bool else self.type(text)
        except (KeyError, ValueError):
            raise ControlError(self.name, f"{text!r} is not {self.allowed}") from None
        return self.check(value)

    def _in_range(self, value: Any) -> bool:
        if self.type is bool:
            return True
        if self.choices is not None:
            return value in self.choices
        if not math.isfinite(value) or not self.minimum <= value <= self.maximum:
            return False
        return self.multiple_of is None or value % self.multiple_of == 0


_SIZE_HELP = "of the result in pixels; left out, it follows the sketch"


def _factor(
    name: str, group: str, text: str, maximum: float = 2, default: float | None = 1.0
) -> Control:
    return Control(name, float, default, text, group, minimum=0, maximum=maximum)


def _side(name: str) -> Control:
    text = f"{name} {_SIZE_HELP}"
    return Control(name, int, None, text, "size", minimum=64, maximum=2048, multiple_of=32)


CONTROLS: tuple[Control, ...] = (
    Control(
        "guidance_scale",
        float,
        None,
        "how strongly the reference's colours win over the model's own ideas; 1 and below is "
        "without guidance and twice as fast",
        minimum=0,
        maximum=15,
    ),
    Control(
        "num_inference_steps",
        int,
        None,
        "more steps are finer and slower",
        minimum=1,
        maximum=100,
    ),
    Control(
        "seed",
        int,
        None,
        "same seed, same picture; left out, a random one is drawn",
        minimum=0,
        maximum=2**32 - 1,
    ),
    _factor(
        "line_overlay",
        "basic",
        "lays the sketch's own lines over the result: 0 not at all, 1 fully",
        maximum=1,
    ),
    Control(
        "keep_size",
        bool,
        True,
        "gives the result the sketch's own size and frame, unless height or width is given",
    ),
    _side("height"),
    _side("width"),
    _factor("sketch_strength", "sketch", "how closely the result follows the lines"),
    _factor(
        "mask_threshold",
        "sketch",
        "where the sketch's mask is brighter than this, it is foreground",
        maximum=1,
        default=0.05,
    ),
    _factor("reference_strength", "reference", "how much the reference contributes", maximum=1),
    _factor(
        "foreground_reference_strength",
        "reference",
        "how much the reference contributes to the figure",
    ),
    _factor(
        "background_reference_strength",
        "reference",
        "how much the reference, or the background picture, contributes to the background",
    ),
    _factor(
        "encoder_reference_strength",
        "reference",
        "how much the reference contributes on the model's way in: what is where",
    ),
    _factor(
        "decoder_reference_strength",
        "reference",
        "how much the reference contributes on the model's way out: colours and textures",
    ),
    _factor(
        "merge_scale",
        "reference",
        "how much of the background picture's style the figure takes",
        maximum=1,
        default=0.0,
    ),
    Control(
        "use_foreground_adapter",
        bool,
        True,
        "takes the figure's details from the reference, if the model has the adapter",
        "adapters",
    ),
    _factor("foreground_strength", "adapters", "how strongly the foreground adapter acts"),
    Control(
        "use_background_adapter",
        bool,
        True,
        "takes the background from the background picture or the reference, if the model has the "
        "adapter",
        "adapters",
    ),
    _factor(
        "background_strength",
        "adapters",
        "how strongly the background adapter acts",
        maximum=1,
        default=None,
    ),
    Control(
        "inpaint_background",
        bool,
        False,
        "keeps the background picture as it is and makes the figure alone",
        "adapters",
    ),
    Control(
        "scheduler",
        str,
        "default",
        "the sampler; default is the model's own",
        "sampling",
        choices=("default", "dpmpp_2m", "dpmpp_2m_sde", "euler", "ddim", "unipc"),
    ),
    Control(
        "karras_sigmas",
        bool,
        False,
        "spends more steps on low noise",
        "sampling",
    ),
    _factor(
        "sketch_guidance_scale",
        "sampling",
        "above 1, pushes away from what the model would make without the sketch; costs a pass",
        maximum=5,
    ),
    _factor(
        "guidance_start",
        "sampling",
        "share of the steps before guidance begins",
        maximum=1,
        default=0.0,
    ),
    _factor("guidance_end", "sampling", "share of the steps after which guidance ends", maximum=1),
    *(
        _factor(
            f"sketch_level_{level}",
            "sketch levels",
            f"strength of the sketch at level {level}: 1 holds the fine lines, 4 the layout",
        )
        for level in (1, 2, 3, 4)
    ),
)


def parse_controls(
    values: Mapping[str, Any], controls: tuple[Control, ...] = CONTROLS
) -> dict[str, ControlValue | None]:
    """Check the given controls and fill in the defaults of the others.

    Args:
        values: Control name to typed value.
        controls: The controls that exist, possibly with narrower ranges.

    Returns:
        Every control's name with its value.

    Raises:
        ControlError: For the first unknown name or value outside its range.
    """
    known = {control.name: control for control in controls}
    for name in values:
        if name not in known:
            raise unknown_control(name, known)
    return {
        name: control.check(values[name]) if name in values else control.default
        for name, control in known.items()
    }


def unknown_control(name: str, known: Iterable[str]) -> ControlError:
    """The error for a name that is no control, with the nearest match and the full list."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ControlError(
        name,
        f"unknown control; {hint}allowed are {', '.join(names)}",
        unknown=True,
    )
