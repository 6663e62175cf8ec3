"""Serve a study: the page is open, pictures and answers need a key where there are keys.

No cookies, nothing from another origin. Keys are the endpoint's (``nurie keys``), sent as
``Authorization: Bearer KEY``; a server without keys listens on this machine only.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nurie_serve.errors import Problem
from nurie_serve.keys import Keyring
from nurie_serve.limits import BodyLimit, SecurityHeaders

PAGE = Path(__file__).parent / "web"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_ANSWER_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class StudyServerError(ValueError):
    """A study that cannot be served as asked."""


def serve_study(folder: Path, host: str, port: int, keys_file: Path | None) -> None:
    """Serve a study until Ctrl+C.

    Raises:
        StudyServerError: No study, or no keys for an address that others reach.
        ConfigError: The file of keys is missing or wrong.
    """
    if host not in LOOPBACK and keys_file is None:
        raise StudyServerError(
            f"host {host}: others can reach this address, so it needs keys: --keys-file FILE"
        )
    application = build_app(folder, Keyring(keys_file) if keys_file else None)
    print(f"study: http://{host}:{port}", flush=True)
    uvicorn.run(application, host=host, port=port, log_level="warning", server_header=False)


def build_app(folder: Path, keyring: Keyring | None) -> Starlette:
    """The application.

    Args:
        folder: Made by ``nurie study build``.
        keyring: The keys, of any scope; None: no key is asked for.

    Raises:
        StudyServerError: The folder is no study.
    """
    if not (folder / "study.json").is_file():
        raise StudyServerError(f"{folder}: no study (study.json is missing); see nurie study build")
    study = json.loads((folder / "study.json").read_text())
    items = {item["id"]: item for item in study["items"]}

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def data(request: Request) -> Response:
        rater_of(request, keyring)
        return JSONResponse(study)

    async def picture(request: Request) -> Response:
        rater_of(request, keyring)
        path = folder / "pictures" / request.path_params["name"]
        if not _NAME.fullmatch(path.name) or not path.is_file():
            raise Problem(HTTPStatus.NOT_FOUND, "no_picture", "there is no such picture")
        return FileResponse(path, media_type="image/png")

    async def answer(request: Request) -> Response:
        rater = rater_of(request, keyring)
        if _from_another_site(request):
            detail = "pages of other sites may not send this"
            raise Problem(HTTPStatus.FORBIDDEN, "cross_origin", detail)
        try:
            given = checked_answer(await request.json(), items, rater)
        except ValueError as error:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_answer", str(error)) from error
        append_line(folder / "answers.jsonl", given)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def refuse(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        return problem.response()

    routes = [
        Route("/", page),
        Route("/study.json", data),
        Route("/pictures/{name}", picture),
        Route("/answers", answer, methods=["POST"]),
        Mount("/web", StaticFiles(directory=PAGE)),
    ]
    application = Starlette(routes=routes, exception_handlers={Problem: refuse})
    application.add_middleware(BodyLimit, max_bytes=MAX_ANSWER_BYTES)
    application.add_middleware(SecurityHeaders)
    return application


def rater_of(request: Request, keyring: Keyring | None) -> str | None:
    """Name of the request's key; None where no keys are asked for.

    Raises:
        Problem: There is no key, or it is wrong or has ended.
    """
    if keyring is None:
        return None
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    key = keyring.find(text.strip()) if kind.lower() == "bearer" else None
    if key is None or key.expired(datetime.now(UTC)):
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "key_wrong",
            "send your key as `Authorization: Bearer KEY`",
            headers={"WWW-Authenticate": 'Bearer realm="nurie"'},
        )
    return key.name


def checked_answer(
    given: Any, items: Mapping[str, Mapping[str, str]], rater: str | None
) -> dict[str, Any]:
    """An answer as it is kept.

    Raises:
        ValueError: A field is missing or wrong; names it.
    """
    if not isinstance(given, dict):
        raise ValueError("an answer is an object")
    item = items.get(str(given.get("item")))
    if item is None:
        raise ValueError("item: there is no such item")
    name = rater or str(given.get("rater"))
    if not _NAME.fullmatch(name):
        raise ValueError("rater: 1 to 64 letters, digits, dots, dashes")
    for field in ("left", "chosen"):
        if given.get(field) not in (item["one"], item["two"]):
            raise ValueError(f"{field}: one of the item's two pictures")
    taken = given.get("milliseconds")
    if not isinstance(taken, int) or taken < 0:
        raise ValueError("milliseconds: a whole number, 0 and more")
    return {
        "rater": name,
        "item": item["id"],
        "left": given["left"],
        "chosen": given["chosen"],
        "milliseconds": taken,
        "received": round(time.time(), 3),
    }


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one JSON line, durably and at once."""
    line = json.dumps(value, separators=(",", ":")) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _from_another_site(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")
