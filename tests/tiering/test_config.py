from __future__ import annotations

from pathlib import Path

import pytest

from tiering import load_config
from tiering.config import MAX_CONFIG_BYTES, Config, Table
from tiering.errors import ConfigError, NotFound
from tiering.stores.wrappers.options import WrapperOptions

GOOD = """
[tiers.lake]
url = "s3://bucket/prefix"
options = {endpoint_url = "http://127.0.0.1:7480", secret_access_key = "env:LAKE_SECRET"}
prices = {egress_gb = 0.5, get_1000 = 2}
[tiers.disk]
url = "/mnt/nvme/tier"
capacity = "2TB"
low_water = 0.5
high_water = 1
options = {operation_deadline_seconds = 60, max_bytes_per_second = "200MB"}
[tiers.old]
url = "/mnt/old"
capacity = 4096
read_only = true
"""
SECRET = "hunter2-canary"


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "tiering.toml"
    path.write_text(text)
    return load_config(path)


def test_config_that_is_right_says_all(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert list(config.tiers) == ["lake", "disk", "old"]
    lake, disk, old = config.tiers.values()
    assert (lake.kind, lake.prices.egress_gb, lake.prices.get_1000) == ("object", 0.5, 2)
    assert lake.options["secret_access_key"] == "env:LAKE_SECRET"
    assert (disk.kind, disk.url, disk.capacity_bytes, disk.read_only) == (
        "file",
        "/mnt/nvme/tier",
        2 * 10**12,
        False,
    )
    assert (disk.low_water, disk.high_water) == (0.5, 1)
    assert disk.options == {"operation_deadline_seconds": 60, "max_bytes_per_second": "200MB"}
    assert (old.capacity_bytes, old.read_only) == (4096, True)
    assert (old.low_water, old.high_water) == (0.85, 0.95)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tiers = 7", ["tiering.toml.tiers = 7", "[tiers.lake]"]),
        ("tiers.lake = 7", ["tiers.lake = 7", "url ="]),
        ("[tiers.lake]", ["tiers.lake.url is missing", "s3://bucket/prefix"]),
        ("[tiers.lake]\nurl = 7", ["tiers.lake.url = 7", "s3://bucket/prefix"]),
        ("[tiers.lake]\nurl = ''", ["tiers.lake", "is empty"]),
        ("[tiers.lake]\nurl = 's3://'", ["tiers.lake", "names no bucket", "s3://bucket/prefix"]),
        ("[tiers.lake]\nurl = 'file://a/b'", ["tiers.lake", "no absolute path", "file:///mnt/nvme/tier"]),
        ("[tiers.lake]\nurl = '/a'\ncapacity = '2XB'", ["tiers.lake", "capacity = '2XB'", "64MiB"]),
        ("[tiers.lake]\nurl = '/a'\ncapacity = 0", ["tiers.lake", "capacity = 0", "64MiB"]),
        ("[tiers.lake]\nurl = '/a'\ncapacity = -5", ["tiers.lake", "capacity = -5", "64MiB"]),
        ("[tiers.lake]\nurl = '/a'\ncapacity = true", ["tiers.lake.capacity = True", "2TB"]),
        ("[tiers.lake]\nurl = '/a'\ncapacity = 1.5", ["tiers.lake.capacity = 1.5", "2TB"]),
        ("[tiers.lake]\nurl = '/a'\nlow_water = '1'", ["tiers.lake.low_water = '1'", "0.85"]),
        ("[tiers.lake]\nurl = '/a'\nhigh_water = 2", ["tiers.lake", "high_water = 2 ", "0.95"]),
        (
            "[tiers.lake]\nurl = '/a'\noptions = {retry_attempts = 0}",
            ["tiers.lake", "retry_attempts", "is 0", "retry_attempts = 5"],
        ),
        ("[tiers.lake]\nurl = '/a'\nread_only = 1", ["tiers.lake.read_only = 1", "true"]),
        ("[tiers.lake]\nurl = '/a'\nprices = 3", ["tiers.lake.prices = 3"]),
        (
            "[tiers.lake]\nurl = '/a'\nprices = {egress_gb = 'x'}",
            ["tiers.lake.prices.egress_gb = 'x'", "0.09"],
        ),
        ("[tiers.lake]\nurl = '/a'\nprices = {egress_gb = -1}", ["tiers.lake", "egress_gb = -1"]),
        ("[tiers.lake]\nurl = '/a'\nprices = {egress_gb = nan}", ["tiers.lake", "egress_gb = nan"]),
        ("[tiers.lake]\nurl = '/a'\nprices = {egres_gb = 1}", ["tiers.lake", "'egres_gb'", "egress_gb"]),
        ("[tiers.lake]\nurl = '/a'\ncapasity = '2TB'", ["tiers.lake.capasity", "Did you mean 'capacity'?"]),
        (
            "[tiers.v]\nurl = '/a'\noptions = {encryption_kye = 'file:/k'}",
            ["tiers.v", "no option 'encryption_kye'", "Did you mean 'encryption_key'?"],
        ),
        (
            "[tiers.v]\nurl = 'sftp://host/a'\noptions = {encryption-key = 'file:/k'}",
            ["tiers.v", "no option 'encryption-key'", "Did you mean 'encryption_key'?"],
        ),
        ("[tiers.v]\nurl = 'memory://a'\noptions = {foo = 1}", ["tiers.v", "'foo'", "retry_attempts"]),
        ("[tiers.v]\nurl = 's3:/a'", ["tiers.v", "one slash", "s3://"]),
        ("[tiers.v]\nurl = '  '", ["tiers.v", "is empty"]),
        ("[caches.n]\npath = ''\ncapacity = '1GB'", ["caches.n", "path"]),
        ("[caches.n]\npath = 's3://b/c'\ncapacity = '1GB'", ["caches.n", "s3://b/c", "local folder"]),
        ("[caches.n]\npath = '/c'\ncapacity = '1e30TB'", ["caches.n", "1 EiB"]),
        ("tiers = 3", ["tiers = 3", "Example: [tiers.lake]"]),
        ("[tiers.lake]\nurl = '/a'\nzzz = 1", ["tiers.lake.zzz", "Known: ", "read_only"]),
        ("[tier.lake]\nurl = '/a'", ["tiering.toml.tier ", "Did you mean 'tiers'?"]),
        ("[tiers.lake", ["is not TOML", "table declaration"]),
    ],
)
def test_config_mistake_is_answered_with_key_value_and_example(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for words in told:
        assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "line",
    [
        f"options = {{secret_access_key = '{SECRET}'}}",
        f"options = {{secret_access_key = ['{SECRET}']}}",
        f"options = {{token = {{value = '{SECRET}'}}}}",
        f"options = ['{SECRET}']",
        f"options = '{SECRET}'",
    ],
)
def test_config_literal_credential_is_refused_and_never_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="option") as caught:
        load(tmp_path, f"[tiers.lake]\nurl = 's3://bucket'\n{line}")
    shown: BaseException | None = caught.value
    while shown is not None:
        assert SECRET not in f"{shown!s} {shown!r}"
        shown = shown.__cause__


@pytest.mark.parametrize("url", [f"s3://user:{SECRET}@bucket/prefix", f"s3://bucket/prefix?token={SECRET}"])
def test_config_credential_in_a_url_is_refused_and_never_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="carries credentials") as caught:
        load(tmp_path, f"[tiers.lake]\nurl = '{url}'")
    assert SECRET not in str(caught.value)


def test_config_that_is_missing_too_large_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--config"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="is over"):
        load(tmp_path, "#" * (MAX_CONFIG_BYTES + 1))
    path = tmp_path / "tiering.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)


def test_config_tier_is_found_by_name_url_or_path(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.tier("disk") is config.tiers["disk"]
    assert config.tier("memory://here").kind == "memory"
    assert config.tier("./disk").url == str(Path("disk").absolute())
    with pytest.raises(NotFound, match="Did you mean 'disk'"):
        config.tier("disc")
    with pytest.raises(NotFound, match="Known: lake, disk, old"):
        config.tier("zzz")
    with pytest.raises(NotFound, match="None is known"):
        Config({}).tier("zzz")


def test_table_hands_out_defaults_and_finds_what_nobody_asked_for() -> None:
    table = Table({"a": 1}, "it")
    assert table.get("b", int, "1") is None
    assert table.get("b", int, "1", 5) == 5
    with pytest.raises(ConfigError, match=r"it\.a is not a known key"):
        table.finish()
    assert table.get("a", int, "1") == 1
    table.finish()
    with pytest.raises(ConfigError, match=r"it = \[\] is not a table"):
        Table([], "it")


def test_config_of_caches_says_all_and_opens_nothing(tmp_path: Path) -> None:
    text = f"""
[caches.node]
path = "{tmp_path}/cache"
capacity = "2TB"
[caches.other]
path = "{tmp_path}/other"
capacity = 4096
policy = "lru"
"""
    caches = load(tmp_path, text).caches
    assert [(name, cache.capacity_bytes, cache.policy) for name, cache in caches.items()] == [
        ("node", 2 * 10**12, "auto"),
        ("other", 4096, "lru"),
    ]
    assert caches["node"].path == tmp_path / "cache"
    assert not caches["node"].path.exists()


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("path = '/x'", "caches.node.capacity is missing"),
        ("capacity = 1", "caches.node.path is missing"),
        ("path = '/x'\ncapacity = 'much'", "caches.node: capacity = 'much'"),
        ("path = '/x'\ncapacity = 1\npolicy = 'newest'", "caches.node: policy must be one of"),
        ("path = '/x'\ncapacity = 1\nsize = 1", "caches.node.size is not a known key"),
    ],
)
def test_config_of_a_wrong_cache_names_it(tmp_path: Path, lines: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        load(tmp_path, f"[caches.node]\n{lines}\n")


def test_configuration_of_the_document_loads(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    (tmp_path / "tiering.toml").write_text(document.split("```toml\n")[1].split("```")[0])
    config = load_config(tmp_path / "tiering.toml")
    assert list(config.tiers) == ["lake", "disk", "vault"]
    assert list(config.caches) == ["node"]
    for option in WrapperOptions.names():
        assert f"`{option}`" in document
