"""Options of object tiers: what is refused, and with which words."""

from __future__ import annotations

import pytest

from tiering.errors import ConfigError, UsageError
from tiering.stores.object import ObjectStore
from tiering.stores.object_options import ObjectOptions


def test_parse_url_gives_bucket_and_prefix() -> None:
    options = ObjectOptions.parse("lake", "s3://bucket/a/b/", {"deadline_seconds": 7})
    assert (options.scheme, options.bucket, options.prefix) == ("s3", "bucket", "a/b")
    assert options.deadline_seconds == 7
    assert ObjectOptions.parse("lake", "s3a://bucket", {}).scheme == "s3"
    assert ObjectOptions.parse("lake", "abfs://box", {}).scheme == "az"
    assert ObjectOptions.parse("lake", "gs://bucket", {}).prefix == ""


@pytest.mark.parametrize(
    "url", ["ftp://bucket/x", "bucket/x", "s3:///x", "s3://user:pw@bucket", "s3://bucket?x=1"]
)
def test_parse_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="tier 'lake'"):
        ObjectOptions.parse("lake", url, {})


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("https://bucket.s3.example.org", "the server alone, such as s3.example.org"),
        ("https://127.0.0.1:9000", "the name of the server"),
    ],
)
def test_parse_endpoint_that_takes_no_bucket_before_it_is_refused(endpoint: str, hint: str) -> None:
    given = {"endpoint_url": endpoint, "virtual_hosted_style": True}
    with pytest.raises(ConfigError, match=r"tier 'lake'.* virtual_hosted_style") as caught:
        ObjectOptions.parse("lake", "s3://bucket", given)
    assert hint in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/a/../b", "s3://bucket/a//b"])
def test_parse_prefix_that_is_no_key_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        ObjectOptions.parse("lake", url, {})


def test_parse_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'endpoint'.*access_key_id.*endpoint_url.*region"):
        ObjectOptions.parse("lake", "s3://bucket", {"endpoint": "https://s3.example.org"})
    with pytest.raises(ConfigError, match="unknown option 'region'"):
        ObjectOptions.parse("lake", "gs://bucket", {"region": "eu"})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("anonymous", "yes"),
        ("allow_http", 1),
        ("deadline_seconds", 0),
        ("deadline_seconds", "30"),
        ("deadline_seconds", True),
        ("deadline_seconds", float("nan")),
        ("endpoint_url", "s3.example.org"),
        ("endpoint_url", "ftp://s3.example.org"),
        ("endpoint_url", "https://user:pw@s3.example.org"),
    ],
)
def test_parse_wrong_value_names_the_option(option: str, value: str | float) -> None:
    with pytest.raises(ConfigError, match=option):
        ObjectOptions.parse("lake", "s3://bucket", {option: value})


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost", "https://s3.x.org"]
)
def test_endpoint_on_loopback_or_tls_is_taken(url: str) -> None:
    ObjectStore("lake", "s3://bucket", {"endpoint_url": url}).close()


def test_endpoint_in_the_clear_needs_allow_http() -> None:
    with pytest.raises(ConfigError, match=r"in the clear.*allow_http = true"):
        ObjectStore("lake", "s3://bucket", {"endpoint_url": "http://s3.example.org"})
    ObjectStore("lake", "s3://bucket", {"endpoint_url": "http://s3.example.org", "allow_http": True}).close()


def test_open_makes_a_client_of_every_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TEST_KEY", "YWJj")
    monkeypatch.setenv("GCS_TEST_KEY", '{"gcs_base_url": "http://127.0.0.1:1", "disable_oauth": true, '
                       '"client_email": "", "private_key": "", "private_key_id": ""}')  # fmt: skip
    options = {
        "s3://bucket": {"anonymous": True, "virtual_hosted_style": True, "region": "eu-west-1"},
        "gs://bucket": {"service_account_key": "env:GCS_TEST_KEY"},
        "az://bucket": {"account_name": "lake", "account_key": "env:AZURE_TEST_KEY"},
    }
    for url, given in options.items():
        client = ObjectOptions.parse("lake", url, given).open(30, 2)
        assert "YWJj" not in repr(client)


@pytest.mark.parametrize("url", [None, "https://s3.example.org", "https://10.0.0.1"])
def test_certificates_are_checked_beyond_loopback(url: str | None) -> None:
    options: dict[str, str | bool] = {"verify_tls": False, **({"endpoint_url": url} if url else {})}
    with pytest.raises(ConfigError, match="not on loopback"):
        ObjectOptions.parse("lake", "s3://bucket", options)
    assert not ObjectOptions.parse("lake", "s3://bucket", {**options, "verify_tls": True}).skips_tls_check
