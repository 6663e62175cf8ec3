"""``POST /v1/inspect``: the settings that a result carries, to make it again or to change it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from nurie.inference.recipe import Recipe, RecipeError, read_recipe
from nurie_serve.caller import WhoAsks
from nurie_serve.form import invalid, missing, read_form, refuse_others, take_one
from nurie_serve.routes.answers import problems

_FIELD = "image"
_FORM = {
    "type": "object",
    "required": [_FIELD],
    "properties": {
        _FIELD: {
            "type": "string",
            "format": "binary",
            "description": "a PNG, WebP, JPEG, PSD or OpenRaster file that nurie made",
        }
    },
    "additionalProperties": False,
}
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
}


def router() -> APIRouter:
    """The route; it needs no service."""
    routes = APIRouter(tags=["information"])

    @routes.post("/v1/inspect", responses=problems(400, 413, 415, 422), openapi_extra=_BODY)
    async def inspect(request: Request, caller: WhoAsks) -> Recipe:
        """The seed, controls and model that a picture was made with; nothing is decoded."""
        form = await read_form(request)
        try:
            refuse_others(form, _FIELD)
            given = take_one(form, _FIELD)
            if given is None:
                raise missing(_FIELD)
            if not isinstance(given, UploadFile):
                raise invalid(_FIELD, "not_a_file", "send the picture as a file, not as text")
            data = await given.read()
        finally:
            await form.close()
        try:
            return read_recipe(data)
        except RecipeError as error:
            raise invalid(_FIELD, "no_settings", f"the file {error}") from None

    return routes
