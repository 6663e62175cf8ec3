"""What a request for a picture asks for, whether it came as a form or as JSON."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData

from nurie.inference.controls import Control
from nurie_serve import json_body
from nurie_serve.caller import Caller
from nurie_serve.form import (
    FORM,
    digest_of,
    invalid,
    media_type,
    read_controls,
    read_form,
    read_images,
    read_text,
    take_one,
)
from nurie_serve.schema import PRIORITY, WEBHOOK, side_fields


@dataclass(frozen=True)
class Asked:
    """A request as it was read, pictures not decoded.

    Args:
        values: Every control, checked; None is left to the server.
        files: Untrusted files by input name.
        uploads: Uploads (their ids) by input name.
        preview_every: Steps between two previews; 0: none.
        priority: Jobs of a higher one are taken first.
        webhook: Address that is told when the job has ended; not checked.
    """

    values: dict[str, Any]
    files: dict[str, bytes]
    uploads: dict[str, str]
    preview_every: int = 0
    priority: int = 0
    webhook: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that was asked for; the same for a form and for JSON."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        asked = [self.values, files, self.uploads, self.preview_every]
        # What is left out adds nothing, so that keys of older versions stay good.
        others = {PRIORITY.name: self.priority, WEBHOOK: self.webhook}
        others = {name: value for name, value in others.items() if value}
        return digest_of([*asked, others] if others else asked)


async def read_request(request: Request, caller: Caller) -> Asked:
    """Read a colorization.

    Raises:
        Problem: If the body is neither such a form nor such JSON.
        ControlError: For an unknown control or a value outside its range.
    """
    if media_type(request) == json_body.MEDIA_TYPE:
        body = await json_body.read_body(request)
        return await asyncio.to_thread(_from_json, body, caller)
    form = await read_form(request, accepted=f"{FORM} or {json_body.MEDIA_TYPE}")
    try:
        return await _from_form(form, caller)
    finally:
        await form.close()


async def _from_form(form: FormData, caller: Caller) -> Asked:
    sides = _sides(caller)
    values = read_controls(form, caller.controls, extra=[*sides, WEBHOOK])
    files, uploads = await read_images(form)
    others = {name: _read_field(form, control) for name, control in sides.items()}
    webhook = take_one(form, WEBHOOK)
    return Asked(values, files, uploads, **others, webhook=_check_text(webhook))


def _from_json(body: Mapping[str, Any], caller: Caller) -> Asked:
    sides = _sides(caller)
    values = json_body.read_values(body, caller.controls, extra=[*sides, WEBHOOK])
    files, uploads = json_body.read_pictures(body)
    others: dict[str, Any] = {
        name: control.check(json_body.plain(control, body.get(name, control.default)))
        for name, control in sides.items()
    }
    webhook = body.get(WEBHOOK, "")
    return Asked(values, files, uploads, **others, webhook=_check_text(webhook))


def _sides(caller: Caller) -> dict[str, Control]:
    return {control.name: control for control in side_fields(caller.limits)}


def _read_field(form: FormData, control: Control) -> Any:
    given = take_one(form, control.name)
    return control.default if given is None else read_text(control, given)


def _check_text(webhook: Any) -> str | None:
    if webhook is not None and not isinstance(webhook, str):
        raise invalid(WEBHOOK, "out_of_range", "this is not text")
    return webhook or None
