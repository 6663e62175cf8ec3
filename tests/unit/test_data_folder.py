"""Data sets at addresses: written whole, read as from a disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from nurie.config.data import ReadConfig
from nurie.data.data_folder import DataFolder


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataFolder]:
    if request.param == "path":
        yield DataFolder(tmp_path / "set")
    elif request.param == "file":
        yield DataFolder((tmp_path / "set").as_uri())
    else:
        yield DataFolder("memory://bucket/set")
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_what_is_put_is_there(folder: DataFolder) -> None:
    assert folder.sizes() == {}
    assert not folder.exists("a/b.bin")
    folder.remove("a/b.bin")
    digest, size = folder.put("a/b.bin", lambda file: file.write(b"first"))
    folder.put("c.bin", lambda file: file.write(b"other"))
    assert folder.put("a/b.bin", lambda file: file.write(b"seconds"))[0] != digest
    assert size == 5
    assert folder.sizes() == {"a/b.bin": 7, "c.bin": 5}
    assert folder.read("a/b.bin") == b"seconds"
    assert folder.read_many(["c.bin"]) == {"c.bin": b"other"}
    assert folder.read_many(["c.bin", "a/b.bin"]) == {"a/b.bin": b"seconds", "c.bin": b"other"}
    folder.remove("c.bin")
    assert folder.exists("a/b.bin") and not folder.exists("c.bin")


def test_a_write_that_fails_leaves_the_old_file(folder: DataFolder, tmp_path: Path) -> None:
    old, _ = folder.put("a.bin", lambda file: file.write(b"old"))

    def break_off(file) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder.put("a.bin", break_off)
    assert folder.sha256("a.bin") == old
    folder.remove_leftovers()
    assert set(folder.sizes()) == {"a.bin"}
    folder.fetch("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_paths_become_absolute_and_addresses_stay() -> None:
    assert ReadConfig(shards="data/x").shards == Path("data/x").absolute()
    assert ReadConfig(shards=Path("data/x")).shards == Path("data/x").absolute()
    config = ReadConfig(shards="s3://bucket/x")
    assert config.shards == "s3://bucket/x"
    assert ReadConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A folder behind an HTTP server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=os.fspath(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_server_can_be_read(served: str, tmp_path: Path) -> None:
    there = DataFolder(tmp_path)
    digest, _ = there.put("a.bin", lambda file: file.write(bytes(range(256))))
    folder = DataFolder(served)
    assert folder.exists("a.bin") and not folder.exists("b.bin")
    assert folder.sha256("a.bin") == digest
    assert "a.bin" in folder.sizes()
