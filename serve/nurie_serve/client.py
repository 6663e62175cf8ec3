"""A client of the HTTP endpoint; needs neither Ray nor torch.

    from nurie_serve.client import Client

    client = Client("http://127.0.0.1:8000")
    job = client.colorize("sketch.png", "reference.png", seed=7, on_event=print)
    Path("result.png").write_bytes(client.image(job))

What the server refuses is a ``ServerError`` with its code and field. A server that is busy, starts
anew or cannot be reached for a moment is asked again for ``patience_s`` seconds; a job is sent with
a key of its own, so that it is made once however often it is sent.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import requests
from pydantic import BaseModel

from nurie_serve.documents import BatchDocument, JobDocument, JobPage, JobStatus, UploadDocument

Picture = str | Path | bytes
"""A file, its content, or the id of an upload (``upl_...``)."""
EventHandler = Callable[["Event"], None]

_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_ENDS = ("done", "failed", "cancelled")
_UPLOAD = "upl_"
_PAUSE_S = 1.0
_MAX_PAUSE_S = 10.0

DocumentT = TypeVar("DocumentT", bound=BaseModel)


class ServerError(RuntimeError):
    """The server refused a request or could not fulfil it.

    Attributes:
        status: HTTP status; 0 if no server answered.
        code: Stable short name, e.g. ``out_of_range``.
        detail: What is wrong and what to do.
        field: The field at fault, if there is one.
    """

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field


class Event(NamedTuple):
    """Something that happened to a job: see ``GET /v1/jobs/{id}/events``."""

    kind: str
    data: dict[str, Any]
    number: int | None


class Client:
    """A server.

    Args:
        address: E.g. ``http://127.0.0.1:8000``.
        key: API key, if the server demands one.
        timeout_s: Seconds without a byte after which a connection counts as lost.
        patience_s: Seconds for which a server that is busy or away is asked again.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
    ) -> None:
        self._address = address.rstrip("/")
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._session = requests.Session()
        if key is not None:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def options(self) -> dict[str, Any]:
        """Every picture, control and limit of the server."""
        return self._call("GET", "/v1/options").json()

    def models(self) -> list[dict[str, Any]]:
        """The models that answer."""
        return self._call("GET", "/v1/models").json()["models"]

    def queue(self) -> dict[str, Any]:
        """Jobs that wait and run, estimated seconds for one more."""
        return self._call("GET", "/v1/queue").json()

    def is_ready(self) -> bool:
        """Whether pictures are made now."""
        try:
            return self._call("GET", "/readyz").ok
        except ServerError:
            return False

    def upload(self, picture: Picture) -> UploadDocument:
        """Send a picture that several jobs use."""
        files = {"image": _content(picture)}
        return self._parse(UploadDocument, self._call("POST", "/v1/uploads", files=files))

    def preprocess(self, picture: Picture, kind: Literal["line", "mask"]) -> bytes:
        """A sketch of a picture's edges, or the mask of its figure, as a PNG file."""
        files, data = _parts([("image", picture)])
        data.append(("kind", kind))
        return self._call("POST", "/v1/preprocess", files=files, data=data).content

    def submit(
        self,
        sketch: Picture,
        reference: Picture,
        *,
        background: Picture | None = None,
        mask: Picture | None = None,
        preview_every: int = 0,
        priority: int = 0,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        **controls: Any,
    ) -> JobDocument:
        """Send a sketch to colour; returns at once.

        Args:
            sketch: Line drawing.
            reference: Picture whose colours are taken.
            background: Picture for the background.
            mask: White where the sketch's figure is.
            preview_every: Steps between two previews in the events; 0: none.
            priority: From -10; jobs of a higher one are taken first, as far as the server allows.
            webhook: Address that the server tells when the job has ended, if it may.
            idempotency_key: The same key and request give the same job.
            controls: See ``options``.

        Raises:
            ServerError: If the server refuses it.
        """
        given = {"sketch": sketch, "reference": reference, "background": background, "mask": mask}
        files, data = _parts([(name, each) for name, each in given.items() if each is not None])
        data += [("params", json.dumps(controls)), ("preview_every", str(preview_every))]
        if priority:
            data.append(("priority", str(priority)))
        if webhook is not None:
            data.append(("webhook", webhook))
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._call("POST", "/v1/jobs", files=files, data=data, headers=headers)
        return self._parse(JobDocument, answer)

    def colorize(
        self,
        sketch: Picture,
        reference: Picture,
        *,
        on_event: EventHandler | None = None,
        **others: Any,
    ) -> JobDocument:
        """Colour a sketch and wait for it; see ``submit`` and ``wait``."""
        return self.wait(self.submit(sketch, reference, **others), on_event)

    def wait(self, job: JobDocument | str, on_event: EventHandler | None = None) -> JobDocument:
        """Wait until a job has ended.

        Args:
            job: The job or its id.
            on_event: Called with each of its events.

        Raises:
            ServerError: If it failed or was cancelled.
        """
        for event in self.events(job):
            if on_event is not None:
                on_event(event)
        ended = self.job(job)
        if ended.error is not None:
            error = ended.error
            raise ServerError(error.status, error.code, error.detail, error.field)
        if ended.status != "succeeded":
            raise ServerError(HTTPStatus.CONFLICT, "cancelled", f"job {ended.id} was cancelled")
        return ended

    def events(self, job: JobDocument | str) -> Iterator[Event]:
        """The events of a job, to its end; a connection that breaks is made again."""
        job_id = _id(job)
        last, end = 0, time.monotonic() + self._patience_s
        while True:
            try:
                for event in self._read_events(job_id, last):
                    last, end = event.number or last, time.monotonic() + self._patience_s
                    yield event
                    if event.kind in _ENDS:
                        return
            except requests.RequestException as error:
                if time.monotonic() > end:
                    raise _unreachable(self._address, error) from error
                time.sleep(_PAUSE_S)
                continue
            if self.job(job_id).finished_at is not None:
                return

    def job(self, job: JobDocument | str) -> JobDocument:
        """How a job is doing."""
        return self._parse(JobDocument, self._call("GET", f"/v1/jobs/{_id(job)}"))

    def jobs(
        self, status: JobStatus | None = None, limit: int = 50, cursor: str | None = None
    ) -> JobPage:
        """Some of one's jobs, newest first."""
        params = {"status": status, "limit": limit, "cursor": cursor}
        return self._parse(JobPage, self._call("GET", "/v1/jobs", params=params))

    def cancel(self, job: JobDocument | str) -> JobDocument:
        """Cancel a job; one that has ended stays as it is."""
        return self._parse(JobDocument, self._call("POST", f"/v1/jobs/{_id(job)}/cancel"))

    def delete(self, job: JobDocument | str) -> None:
        """Delete a job and its pictures."""
        self._call("DELETE", f"/v1/jobs/{_id(job)}")

    def image(
        self,
        job: JobDocument | str,
        number: int = 0,
        image_format: str = "png",
        metadata: bool = True,
    ) -> bytes:
        """A finished picture.

        Args:
            job: The job or its id.
            number: Which of its pictures.
            image_format: One of ``formats`` of ``options``.
            metadata: Whether the settings are in the file.
        """
        path = f"/v1/jobs/{_id(job)}/images/{number}"
        return self._call(
            "GET", path, params={"format": image_format, "metadata": int(metadata)}
        ).content

    def submit_batch(
        self,
        sketches: Sequence[Picture],
        references: Sequence[Picture],
        seeds: Sequence[int] = (),
        **controls: Any,
    ) -> BatchDocument:
        """Send every sketch with every reference and every seed."""
        pairs = [("sketch", each) for each in sketches]
        files, data = _parts([*pairs, *(("reference", each) for each in references)])
        data += [("seed", str(seed)) for seed in seeds]
        data.append(("params", json.dumps(controls)))
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._call("POST", "/v1/batches", files=files, data=data, headers=headers)
        return self._parse(BatchDocument, answer)

    def batch(self, batch: BatchDocument | str) -> BatchDocument:
        """How a batch is doing."""
        return self._parse(BatchDocument, self._call("GET", f"/v1/batches/{_id(batch)}"))

    def archive(self, batch: BatchDocument | str) -> bytes:
        """A zip of a batch's finished pictures."""
        return self._call("GET", f"/v1/batches/{_id(batch)}/archive.zip").content

    def _read_events(self, job_id: str, last: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        with self._call("GET", f"/v1/jobs/{job_id}/events", headers=headers, stream=True) as answer:
            fields: dict[str, str] = {}
            for raw in answer.iter_lines():
                line = raw.decode()
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    number = int(fields["id"]) if "id" in fields else None
                    yield Event(fields["event"], json.loads(fields["data"]), number)
                    fields = {}

    def _call(self, method: str, path: str, **others: Any) -> requests.Response:
        """Send a request, again while the server is busy or away."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                answer = self._session.request(
                    method, self._address + path, timeout=self._timeout_s, **others
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                pause = _PAUSE_S
                if time.monotonic() + pause > end:
                    raise _unreachable(self._address, error) from error
            else:
                if answer.ok:
                    return answer
                pause = min(float(answer.headers.get("Retry-After", _PAUSE_S)), _MAX_PAUSE_S)
                if answer.status_code not in _AGAIN or time.monotonic() + pause > end:
                    raise _refusal(answer)
            time.sleep(pause)

    def _parse(self, kind: type[DocumentT], answer: requests.Response) -> DocumentT:
        return kind.model_validate(answer.json())


def _id(thing: JobDocument | BatchDocument | str) -> str:
    return thing if isinstance(thing, str) else thing.id


def _content(picture: Picture) -> tuple[str, bytes]:
    """Name and bytes: bytes, unlike open files, can be sent again."""
    if isinstance(picture, bytes):
        return "picture", picture
    return Path(picture).name, Path(picture).read_bytes()


def _parts(
    pictures: Sequence[tuple[str, Picture]],
) -> tuple[list[tuple[str, Any]], list[tuple[str, str]]]:
    """Files and fields of a form; an upload is a field."""
    files: list[tuple[str, Any]] = []
    fields: list[tuple[str, str]] = []
    for name, picture in pictures:
        if isinstance(picture, str) and picture.startswith(_UPLOAD):
            fields.append((name, picture))
        else:
            files.append((name, _content(picture)))
    if not files:
        # requests sends a form without files as something else than multipart.
        name, upload = fields.pop()
        files.append((name, (None, upload)))
    return files, fields


def _unreachable(address: str, error: Exception) -> ServerError:
    reason = type(error).__name__
    detail = f"{address} does not answer ({reason}); is it running, is the address right?"
    return ServerError(0, "unreachable", detail)


def _refusal(answer: requests.Response) -> ServerError:
    try:
        problem = answer.json()
        return ServerError(
            problem["status"], problem["code"], problem["detail"], problem.get("field")
        )
    except (ValueError, KeyError, TypeError):
        detail = f"{answer.url} answered {answer.status_code} {answer.reason}"
        return ServerError(answer.status_code, "unknown", detail)
