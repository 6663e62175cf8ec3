"""API keys: only digests are kept, wrong ones say nothing, a running server follows the file."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from nurie.config.keys import ApiKey, KeysConfig
from nurie.config.loader import ConfigError, load_config
from nurie.config.serve import LimitsConfig, ServeConfig
from nurie_cli.main import main
from nurie_serve import keys
from nurie_serve.keys import Keyring, add_key, limits_of, read_keys, revoke_key
from nurie_serve.run import who_comes_in


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_the_file_holds_no_key_and_is_for_its_owner(file: Path) -> None:
    text = add_key(file, "studio")
    assert text.startswith("nurie_") and len(text) > 45
    assert text not in file.read_text() and text[6:] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert add_key(file, "other") != text
    (studio, other) = read_keys(file).keys
    assert studio.sha256 == keys.digest(text) != other.sha256


def test_a_keyring_knows_its_keys_alone(file: Path) -> None:
    studio, guest = add_key(file, "studio"), add_key(file, "guest", days=7)
    ring = Keyring(file)
    found = [ring.find(text) for text in (studio, guest, "", studio[:-1], f"{studio}x", "\udcff")]
    assert [key and key.name for key in found] == ["studio", "guest", None, None, None, None]


def test_a_wrong_key_is_compared_with_all(file: Path, monkeypatch) -> None:
    texts = [add_key(file, name) for name in ("first", "second", "third")]
    ring = Keyring(file)
    compared: list[str] = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(
        keys.hmac, "compare_digest", lambda own, given: compared.append(own) or real(own, given)
    )
    for text in (texts[0], texts[2], "wrong"):
        compared.clear()
        ring.find(text)
        assert len(compared) == 3


def test_a_running_server_follows_the_file(file: Path) -> None:
    studio = add_key(file, "studio")
    ring = Keyring(file)
    guest = add_key(file, "guest")
    assert ring.find(guest) is not None
    revoke_key(file, "guest")
    assert ring.find(guest) is None
    assert ring.find(studio) is not None


@pytest.mark.parametrize("damage", ["kind: keys\nkeys: [{name: x}]\n", "{", None])
def test_a_file_that_breaks_changes_nothing(file: Path, damage: str | None, caplog) -> None:
    studio = add_key(file, "studio")
    ring = Keyring(file)
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    assert ring.find(studio) is not None
    assert ring.find("x") is None
    assert "the keys stay as they were" in caplog.text


def test_a_key_ends() -> None:
    now = datetime.now(UTC)
    key = ApiKey(name="a", sha256="0" * 64, created_at=now, expires_at=now + timedelta(hours=1))
    assert not key.expired(now)
    assert key.expired(now + timedelta(hours=1))


def test_scopes_include_each_other() -> None:
    def allowed(scope: str) -> list[str]:
        now = datetime.now(UTC)
        key = ApiKey(name="a", sha256="0" * 64, created_at=now, scope=scope)
        return [wanted for wanted in ("read", "colorize", "admin") if key.allows(wanted)]

    assert allowed("read") == ["read"]
    assert allowed("colorize") == ["read", "colorize"]
    assert allowed("admin") == ["read", "colorize", "admin"]


def test_the_smaller_limit_counts(file: Path) -> None:
    add_key(file, "guest", limits={"max_pixels": 5000, "max_side": 4096, "max_active": 2})
    (key,) = read_keys(file).keys
    server = LimitsConfig(max_side=1024)
    assert limits_of(key, server) == server.model_copy(update={"max_pixels": 5000})


def test_every_limit_of_a_key_has_a_place() -> None:
    fields = set(KeysConfig.model_fields["keys"].annotation.__args__[0].model_fields)
    assert "limits" in fields
    own = set(ApiKey.model_fields["limits"].annotation.model_fields)
    assert own - {"max_active"} <= set(LimitsConfig.model_fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "studio"], "studio: FILE has a key of this name"),
        (["add", "Böse"], "name: 'Böse': string should match pattern"),
        (["add", "../x"], "name: '../x': string should match pattern"),
        (["add", "a", "--max-active", "0"], "max_active: 0: input should be greater than or equal"),
        (["add", "a", "--days", "-1"], "days: -1 is not above 0"),
        (["add", "a", "--days", "nan"], "days: nan is not above 0"),
        (["revoke", "nobody"], "nobody: FILE has no such key; there are: studio"),
    ],
)
def test_what_the_user_can_correct(file: Path, capsys, words: list[str], message: str) -> None:
    add_key(file, "studio")
    assert main(["keys", *words, "--file", str(file)]) == 2
    error = capsys.readouterr().err
    assert message.replace("FILE", str(file)) in error
    assert len(error.splitlines()) == 1
    assert [key.name for key in read_keys(file).keys] == ["studio"]


def test_the_command_line(file: Path, capsys) -> None:
    flags = ["--file", str(file)]
    assert main(["keys", "add", "guest", "--scope", "read", "--max-active", "2", *flags]) == 0
    text = capsys.readouterr().out.strip()
    found = Keyring(file).find(text)
    assert found is not None and (found.name, found.limits.max_active) == ("guest", 2)
    assert main(["keys", "add", "short", "--days", "1", *flags]) == 0
    capsys.readouterr()
    assert main(["keys", "list", *flags]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["guest", "read", "max_active=2"]
    assert "ends" in listed[1]
    assert main(["keys", "revoke", "guest", *flags]) == 0
    assert Keyring(file).find(text) is None
    # The file is a configuration like all others.
    assert isinstance(load_config(file), KeysConfig)


def test_names_are_unique(file: Path) -> None:
    add_key(file, "a")
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | {"keys": values["keys"] * 2}))
    with pytest.raises(ConfigError, match="a name stands for one key only"):
        read_keys(file)


def test_the_network_needs_keys(file: Path) -> None:
    with pytest.raises(ValueError, match=r"host 0\.0\.0\.0: others can reach it.*keys add"):
        ServeConfig(host="0.0.0.0")
    assert ServeConfig(host="0.0.0.0", keys_file=file).hosts == ()
    assert ServeConfig(host="0.0.0.0", open_to_network=True).hosts == ()
    assert ServeConfig(keys_file=file, allowed_hosts=("a.example",)).hosts == ("a.example",)
    assert "localhost" in ServeConfig().hosts


def test_the_operator_is_told_who_comes_in(file: Path) -> None:
    assert "this machine only" in who_comes_in(ServeConfig())
    assert who_comes_in(ServeConfig(host="0.0.0.0", open_to_network=True)).startswith("OPEN")
    assert str(file) in who_comes_in(ServeConfig(keys_file=file))
