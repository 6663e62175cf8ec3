"""``POST /v1/preprocess``: lines or mask of a picture, to look at and to send with a sketch."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from nurie.inference.controls import Control
from nurie_serve.caller import WhoAsks
from nurie_serve.form import invalid, missing, read_form, refuse_others, take_picture
from nurie_serve.preprocess import KINDS
from nurie_serve.routes.answers import PICTURE, problems
from nurie_serve.schema import control_schema
from nurie_serve.service import Service

_FIELD = "image"
_KIND = Control(
    "kind",
    str,
    None,
    "line: a sketch of the picture's edges; mask: white where the figure is",
    choices=tuple(KINDS),
)
_FORM = {
    "type": "object",
    "required": [_FIELD, _KIND.name],
    "properties": {
        _FIELD: {
            "type": "string",
            "format": "binary",
            "description": "the picture, or the id of an upload",
        },
        _KIND.name: control_schema(_KIND),
    },
    "additionalProperties": False,
}
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
}


def router(service: Service) -> APIRouter:
    """The route over a service."""
    routes = APIRouter(tags=["information"])

    @routes.post(
        "/v1/preprocess",
        response_class=Response,
        responses={
            200: {**PICTURE, "description": "a grey picture"},
            **problems(400, 404, 413, 415, 422),
        },
        openapi_extra=_BODY,
    )
    async def preprocess(request: Request, caller: WhoAsks) -> Response:
        """Draw a picture as lines, or find its figure as a sketch's is found without a mask."""
        form = await read_form(request, max_files=2)
        try:
            refuse_others(form, _FIELD, _KIND.name)
            kinds = form.getlist(_KIND.name)
            if len(kinds) != 1:
                raise invalid(_KIND.name, "missing_field", f"send one, {_KIND.allowed}")
            kind = str(_KIND.parse_text(str(kinds[0])))
            picture = await take_picture(form, _FIELD)
            if picture is None:
                raise missing(_FIELD)
        finally:
            await form.close()
        png = await service.preprocess(caller, _FIELD, picture, kind)
        return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})

    return routes
