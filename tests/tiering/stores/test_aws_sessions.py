from __future__ import annotations

import uuid
from pathlib import Path
from unittest import mock

import pytest
from botocore.loaders import JSONFileLoader  # type: ignore[import-untyped,unused-ignore]

from tests.servers import BUCKET, Endpoint
from tiering.errors import ConfigError
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import ObjectStore

MAKERS = pytest.mark.parametrize("make", [ObjectStore, FsspecStore])
StoreMaker = type[ObjectStore] | type[FsspecStore]

pytestmark = pytest.mark.usefixtures("s3_environment")


@MAKERS
def test_descriptions_of_services_are_read_once(make: StoreMaker, moto_endpoint: Endpoint) -> None:
    def open_and_sweep() -> None:
        with make("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", moto_endpoint.options()) as store:
            assert not list(store.list())
            assert store.sweep() == 0

    open_and_sweep()
    with mock.patch.object(JSONFileLoader, "load_file", side_effect=AssertionError) as read:
        open_and_sweep()
    assert not read.called


@MAKERS
@pytest.mark.parametrize("config", ["[profile other]\nregion = x\n", "no section\n"])
def test_broken_aws_configuration_is_a_typed_error(
    make: StoreMaker,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "absent")
    told = "the AWS configuration cannot be used for tier 'lake'"
    options = Endpoint("http://127.0.0.1:1", "none").options()
    with make("lake", "s3://bucket/x", options) as store:
        assert store.sweep() == 0  # upkeep stops nobody
        assert told in caplog.text
        if make is FsspecStore:  # obstore reads no such file
            with pytest.raises(ConfigError, match=f"{told}.*AWS_PROFILE"):
                store.stat("k")
