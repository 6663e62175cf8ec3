"""The client and ``nurie colorize --server``, over HTTP to an application with a small replica."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from nurie.config.serve import ServeConfig
from nurie.inference.recipe import read_recipe
from nurie_cli.main import main
from nurie_cli.sketches import plan
from nurie_serve.client import Client, Event, ServerError
from nurie_serve.ingress import create_api
from nurie_serve.jobs.tables import QUEUED
from tests.serve.conftest import PNG, UNLUCKY, Handle, encode, line_drawing
from tests.serve.listening import listening
from tests.serve.waiting import eventually


@pytest.fixture
def address(config: ServeConfig, handle: Handle) -> Iterator[str]:
    app = create_api(config, handle)
    with listening(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, patience_s=10)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(3):
        (folder / f"page{number}.png").write_bytes(encode(line_drawing(64 + 32 * number)))
    (folder / "notes.txt").write_text("no picture")
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    return folder


def test_colorize_with_events(client: Client, handle: Handle) -> None:
    seen: list[Event] = []
    job = client.colorize(PNG, PNG, seed=5, num_inference_steps=2, on_event=seen.append)
    assert (job.status, job.params["seed"]) == ("succeeded", 5)
    assert seen[0].kind == QUEUED
    assert seen[-1].kind == "done"
    assert hashlib.sha256(client.image(job, metadata=False)).hexdigest() == job.images[0].sha256
    assert handle.jobs[0].num_inference_steps == 2


def test_upload_batch_and_archive(client: Client) -> None:
    upload = client.upload(PNG)
    batch = client.submit_batch([upload.upload_id], [upload.upload_id], seeds=[1, 2])
    done = eventually(lambda: (found := client.batch(batch)).finished and found)
    assert done.counts == {"succeeded": 2}
    with zipfile.ZipFile(io.BytesIO(client.archive(done))) as archive:
        assert len(archive.namelist()) == 3


def test_lines_and_masks(client: Client) -> None:
    upload = client.upload(PNG).upload_id
    for picture in (PNG, upload):
        for kind in ("line", "mask"):
            image = Image.open(io.BytesIO(client.preprocess(picture, kind)))
            assert (image.mode, image.size) == ("L", (64, 64))


def test_the_rest(client: Client, handle: Handle) -> None:
    handle.painter.gate.clear()
    job = client.submit(PNG, PNG)
    assert client.cancel(job).status == "cancelled"
    handle.painter.gate.set()
    with pytest.raises(ServerError, match="was cancelled"):
        client.wait(job)
    assert [each.id for each in client.jobs().jobs] == [job.id]
    client.delete(job)
    with pytest.raises(ServerError) as caught:
        client.job(job)
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    assert client.models()[0]["name"] == "test-model"
    assert "controls" in client.options()


def test_refusals_name_the_field(client: Client) -> None:
    with pytest.raises(ServerError, match="num_inference_steps: 0 is not a whole number") as caught:
        client.submit(PNG, PNG, num_inference_steps=0)
    assert caught.value.code == "out_of_range"
    with pytest.raises(ServerError) as caught:
        client.colorize(PNG, PNG, seed=UNLUCKY)
    assert caught.value.code == "internal_error"


def test_broken_connections_are_mended(
    client: Client, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nurie_serve.client._PAUSE_S", 0.01)
    send = client._session.request
    faults = [requests.ConnectionError(), requests.ReadTimeout()]

    def unreliable(method: str, *args, **others):
        answer = send(method, *args, **others)
        if faults and method == "POST":
            # The server has it, but the answer is lost.
            raise faults.pop()
        return answer

    monkeypatch.setattr(client._session, "request", unreliable)
    job = client.colorize(PNG, PNG)
    assert job.status == "succeeded"
    assert faults == []
    assert len(handle.jobs) == 1, "one job, however often it was sent"


def test_cut_stream_goes_on_where_it_was(
    client: Client, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nurie_serve.client._PAUSE_S", 0.01)
    whole = client._read_events

    def cut(job_id: str, last: int) -> Iterator[Event]:
        for event in whole(job_id, last):
            yield event
            if event.number:
                raise requests.exceptions.ChunkedEncodingError
        return

    monkeypatch.setattr(client, "_read_events", cut)
    seen: list[Event] = []
    client.colorize(PNG, PNG, on_event=seen.append)
    assert [event.kind for event in seen if event.number] == ["queued", "started", "done"]


def test_nobody_answers() -> None:
    with pytest.raises(ServerError, match="does not answer") as caught:
        Client("http://127.0.0.1:9", patience_s=0).options()
    assert caught.value.code == "unreachable"


def test_folder_of_sketches(
    address: str, drawings: Path, handle: Handle, capsys: pytest.CaptureFixture[str]
) -> None:
    out = drawings.parent / "out"
    common = ["--reference", str(drawings.parent / "red.png"), "-o", str(out), "--server", address]
    assert main(["colorize", str(drawings), *common, "--seed", "5"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["page0.png", "page1.png", "page2.png"]
    assert Image.open(out / "page2.png").size[0] == 128
    assert "page1.png (seed 5)" in capsys.readouterr().out
    (out / "page1.png").unlink()
    before = len(handle.jobs)
    assert main(["colorize", str(drawings), *common, "--skip-existing"]) == 0
    assert len(handle.jobs) == before + 1
    assert main(["colorize", str(drawings), *common, "--skip-existing"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_formats_of_pictures(address: str, drawings: Path, handle: Handle) -> None:
    red = str(drawings.parent / "red.png")
    common = ["--reference", red, "--server", address]
    out = drawings.parent / "out"
    flags = ["-o", str(out), "--format", "ora", "--seed", "7"]
    assert main(["colorize", str(drawings), *common, *flags]) == 0
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["page0.ora", "page1.ora", "page2.ora"]
    assert read_recipe(files[0].read_bytes()).seed == 7
    flags = ["-o", str(out / "one.psd"), "--settings-from", str(files[0]), "--no-metadata"]
    assert main(["colorize", str(drawings / "page1.png"), *common, *flags]) == 0
    data = (out / "one.psd").read_bytes()
    assert data.startswith(b"8BPS") and b"nurie" not in data
    assert handle.jobs[-1].seed == [7]


def test_one_that_fails_does_not_stop_the_others(
    address: str, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (drawings / "bad.png").write_bytes(b"no picture")
    out = drawings.parent / "out"
    references = [f"--reference={drawings.parent / name}.png" for name in ("red", "blue")]
    pattern = str(drawings / "*.png")
    assert main(["colorize", pattern, *references, "-o", str(out), "--server", address]) == 1
    assert len(list(out.iterdir())) == 6
    errors = capsys.readouterr().err
    assert errors.count("bad.png") == 2
    assert "2 of 8 pictures could not be made" in errors


def test_server_flags(
    address: str, drawings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    red = str(drawings.parent / "red.png")
    words = ["colorize", str(drawings), "--reference", red, "-o", str(tmp_path / "o")]
    assert main([*words, "--server", address, "--device", "cpu"]) == 2
    assert "--device: the server has no such input" in capsys.readouterr().err
    assert main([*words, "--server", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
    one = ["colorize", str(drawings / "page0.png"), "--reference", red, "--background", red]
    target = tmp_path / "deep" / "one.png"
    assert main([*one, "-o", str(target), "--server", address, "--foreground-mask", red]) == 0
    assert target.exists()


def test_status(
    address: str, client: Client, handle: Handle, capsys: pytest.CaptureFixture[str]
) -> None:
    client.colorize(PNG, PNG)
    port = address.rpartition(":")[2]
    config = str(Path(__file__).parents[2] / "configs/serve/nano.yaml")
    assert main(["serve", config, "--status", "--port", port]) == 0
    shown = capsys.readouterr().out
    assert "ready" in shown
    assert "test-model sha256:abababababab on cpu" in shown
    assert "0 of 8 wait, 0 run" in shown
    handle.replica.close()
    assert main(["serve", config, "--status", "--port", port]) == 1
    assert "no replica lives" in capsys.readouterr().out
    assert main(["serve", config, "--status", "--port", "9"]) == 1
    assert "does not answer" in capsys.readouterr().out


def test_plan_of_pictures(drawings: Path) -> None:
    red = str(drawings.parent / "red.png")
    with pytest.raises(ValueError, match="is one file for 3 pictures; name a folder"):
        plan([str(drawings)], [red], "out.png", skip_existing=False)
    with pytest.raises(ValueError, match="has no picture"):
        plan([str(drawings / "*.webp")], [red], "out", skip_existing=False)
    twice = [str(drawings), str(drawings / "page1.png")]
    with pytest.raises(ValueError, match=r"2 pictures would be written to out.page1\.png"):
        plan(twice, [red], "out", skip_existing=False)
    (task,) = plan([str(drawings / "page1.png")], [red], "some/x.png", skip_existing=False)
    assert task.output == Path("some/x.png")
