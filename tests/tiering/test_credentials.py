"""Credentials are references, and no message shows what they refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiering.credentials import aws_keys, check_references, check_url, is_credential, resolve
from tiering.errors import ConfigError

CANARY = "canary-7c1e"


@pytest.mark.parametrize(
    "option",
    [
        "access_key_id",
        "secret_access_key",
        "session_token",
        "token",
        "password",
        "account_key",
        "sas_token",
        "key",
        "secret",
        "service_account_key",
        "Client_Secret",
        "api-key",
        "hdfs_token",
    ],
)
def test_is_credential_names_of_secrets(option: str) -> None:
    assert is_credential(option)


@pytest.mark.parametrize(
    "option",
    ["endpoint_url", "region", "anonymous", "deadline_seconds", "profile", "account_name", "driver", "user"],
)
def test_is_credential_other_names(option: str) -> None:
    assert not is_credential(option)


@pytest.mark.parametrize("value", [CANARY, f"profile:{CANARY}", "env:", "file: ", "", 12345, True, 1.5])
def test_check_references_literal_is_refused(value: str | int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_references({"region": "x", "secret_access_key": value}, "tier 'lake'")
    text = str(caught.value)
    assert "'secret_access_key' of tier 'lake'" in text
    assert 'secret_access_key = "env:LAKE_SECRET_ACCESS_KEY"' in text
    assert CANARY not in text
    assert "12345" not in text


def test_check_references_references_pass() -> None:
    check_references({"key": "env:A", "secret": "file:/run/secrets/lake", "region": "plain"}, "tier 'lake'")


@pytest.mark.parametrize(
    "url", [f"s3://user:{CANARY}@bucket/x", f"https://h/x?sig={CANARY}", f"s3://b/x#{CANARY}"]
)
def test_check_url_with_a_credential_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url, "tier 'lake'")
    assert CANARY not in str(caught.value)


def test_resolve_looks_up_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAKE_KEY", "from-env")
    (tmp_path / "secret").write_text("from-file\n")
    options = {"key": "env:LAKE_KEY", "secret": f"file:{tmp_path / 'secret'}", "region": "eu", "retries": 3}
    assert resolve(options, "tier 'lake'") == {
        "key": "from-env",
        "secret": "from-file",
        "region": "eu",
        "retries": 3,
    }
    assert options["key"] == "env:LAKE_KEY"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve({"secret": "file:~/secret"}, "tier 'lake'") == {"secret": "from-file"}


@pytest.mark.parametrize(
    "reference", ["env:TIERING_NOT_SET", "env:TIERING_EMPTY", "file:/nonexistent/secret"]
)
def test_resolve_missing_names_the_reference(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERING_EMPTY", "")
    with pytest.raises(ConfigError) as caught:
        resolve({"secret": reference}, "tier 'lake'")
    assert repr(reference.partition(":")[2]) in str(caught.value)
    assert "'secret' of tier 'lake'" in str(caught.value)


def test_resolve_of_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        resolve({"secret": f"file:{tmp_path / 'secret'}"}, "tier 'lake'")


def test_aws_keys_none_given_leaves_it_to_the_client() -> None:
    assert aws_keys({"region": "eu"}, "tier 'lake'") is None


def test_aws_keys_are_looked_up_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = aws_keys(
        {"access_key_id": "env:K", "secret_access_key": "env:S", "session_token": "env:T"}, "tier 'lake'"
    )
    assert look_up is not None
    for version in ("1", "2"):
        for name in "KST":
            monkeypatch.setenv(name, name.lower() + version)
        keys = look_up()
        assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == tuple(
            letter + version for letter in "kst"
        )
        assert keys["expires_at"] is not None


@pytest.mark.parametrize(
    "given", [{"access_key_id"}, {"secret_access_key"}, {"session_token"}, {"profile", "access_key_id"}]
)
def test_aws_keys_that_do_not_go_together_are_refused(given: set[str]) -> None:
    with pytest.raises(ConfigError, match="do not go together"):
        aws_keys(dict.fromkeys(given, "env:X"), "tier 'lake'")


def test_aws_keys_of_a_profile_come_from_the_shared_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_environment: None
) -> None:
    (tmp_path / "credentials").write_text(
        "[train]\naws_access_key_id = k\naws_secret_access_key = s\n[bare]\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    look_up = aws_keys({"profile": "train"}, "tier 'lake'")
    assert look_up is not None
    keys = look_up()
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == ("k", "s", None)
    for profile in ("bare", "absent"):
        look_up = aws_keys({"profile": profile}, "tier 'lake'")
        assert look_up is not None
        with pytest.raises(ConfigError, match=f"profile '{profile}' of tier 'lake'"):
            look_up()
