"""Whole corpora on encrypted tiers: ingest, moves, loading, and keys that are missing or too many."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from loaders.gpu import CudaSlots
from tests.gpu.host_device import HostDevice, make
from tests.servers import BUCKET, Endpoint
from tests.tiering.corpora import flip, objects, small, small_arrow
from tests.tiering.encryption.tools import key_bytes, key_file
from tiering import NodeCache, Tier, ingest, open_corpus, open_tier, plan_move, release, verify
from tiering.encryption.frames import MAGIC
from tiering.errors import ConfigError
from tiering.reader import BlockReader

MakeTier = Callable[..., Tier]
SECRET = key_bytes(1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("make_corpus", [small, small_arrow])
def test_a_corpus_goes_plain_encrypted_plain_and_stays_the_same(
    make_corpus: Callable[[Tier], Any], make_tier: MakeTier, make_encrypted: MakeTier, tmp_path: Path
) -> None:
    plain, vault, back = make_tier("plain"), make_encrypted("vault"), make_tier("back")
    corpus = make_corpus(plain)
    plan_move(corpus, vault, release=True).run(progress=False)
    stored = files(tmp_path / "vault")
    assert all(data.startswith(MAGIC) != name.endswith("encryption.json") for name, data in stored.items())
    there = open_corpus(vault, corpus.name)
    assert there.record == corpus.record
    assert verify(there, progress=False).ok
    plan_move(there, back).run(progress=False)
    assert verify(open_corpus(back, corpus.name), progress=False).ok
    assert open_corpus(back, corpus.name).manifest.equals(corpus.manifest)
    assert release(there, vault, copies=[back]) > corpus.nbytes
    names = [name for name in files(tmp_path / "vault") if name.startswith(f"{corpus.name}/")]
    left = {name.split("/")[2] for name in names}
    assert left == {"encryption.json", "claims"}


def test_ingest_into_an_encrypted_tier_and_again(make_encrypted: MakeTier) -> None:
    lake = make_encrypted("lake")
    corpus = small(lake)
    before = objects(lake)
    assert small(lake).record == corpus.record
    assert {key for key in before if "claims" not in key} <= set(objects(lake))
    assert verify(corpus, progress=False).ok


def test_loader_over_an_encrypted_tier_equals_the_plain_one(
    make_tier: MakeTier, make_encrypted: MakeTier, tmp_path: Path
) -> None:
    data = {"tokens": np.random.default_rng(1).integers(0, 1 << 16, (3000, 128), np.uint16)}
    options: dict[str, Any] = {"shard_size": "300KB", "block_rows": 64, "progress": False}
    plain = ingest(data, make_tier("plain"), "web", **options)
    vault = ingest(data, make_encrypted("vault"), "web", **options)
    assert plain.manifest.equals(vault.manifest)
    with contextlib.closing(NodeCache(tmp_path / "cache", "10MB")) as cache:
        for corpus, kept in ((vault, None), (vault, cache), (vault, cache)):
            expected = Loader(plain, 32, seed=5, lanes=4)
            found = Loader(corpus, 32, seed=5, lanes=4, cache=kept)
            for left, right in zip(expected, found, strict=True):
                np.testing.assert_array_equal(left["tokens"], right["tokens"])


def test_gpu_slots_go_through_host_memory_and_say_so(
    make_encrypted: MakeTier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make(make_encrypted("vault"))
    device = HostDevice()
    with caplog.at_level(logging.WARNING, "loaders.gpu"):
        slots = CudaSlots(BlockReader(corpus), 2, device)
        slots.read(0, 0, 0)
        slots.close()
    assert (slots.path.direct, slots.path.host, device.preads) == (0, 3, 0)
    assert "blocks go through host memory: tier 'vault' is encrypted" in caplog.text
    with contextlib.closing(NodeCache(tmp_path / "cache", "10MB")) as cache:  # which holds plaintext
        slots = CudaSlots(BlockReader(corpus, cache=cache), 2, device)
        slots.read(0, 0, 0)
        slots.close()
    assert slots.path.direct == 3


def test_an_encrypted_corpus_without_its_key_says_so(
    make_tier: MakeTier, make_encrypted: MakeTier, tmp_path: Path
) -> None:
    corpus = small(make_encrypted("lake"))
    before = files(tmp_path / "lake")
    bare = make_tier("lake")
    calls: list[Callable[[], Any]] = [
        lambda: open_corpus(bare, "web"),
        lambda: open_corpus(bare, "web", 1),
        lambda: small(bare),
        lambda: release(corpus, bare),
        lambda: plan_move(small(make_tier("disk")), bare).run(progress=False),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"is encrypted.*encryption_key = ") as caught:
            call()
        assert caught.value.tier == "lake"
    assert files(tmp_path / "lake") == before


def test_a_plain_corpus_on_an_encrypted_tier_says_so(
    make_tier: MakeTier, make_encrypted: MakeTier, tmp_path: Path
) -> None:
    corpus = small(make_tier("lake"))
    before = files(tmp_path / "lake")
    vault = make_encrypted("lake")
    calls: list[Callable[[], Any]] = [
        lambda: open_corpus(vault, "web"),
        lambda: small(vault),
        lambda: release(corpus, vault),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="not encrypted"):
            call()
    assert files(tmp_path / "lake") == before


def test_a_damaged_head_is_not_needed(make_encrypted: MakeTier, make_tier: MakeTier) -> None:
    corpus = small(make_encrypted("lake"))
    flip(make_tier("lake"), "web/.tiering/HEAD", 4100)
    assert open_corpus(make_encrypted("lake", prices={"get_1000": 1.0}), "web").record == corpus.record


def test_a_damaged_shard_is_healed_from_another_tier(make_encrypted: MakeTier, make_tier: MakeTier) -> None:
    vault, plain = make_encrypted("vault"), make_tier("plain")
    corpus = small(vault)
    plan_move(corpus, plain).run(progress=False)
    key = corpus.key(corpus.manifest["key"][0].as_py())
    flip(make_tier("vault"), key, -2)
    assert verify(corpus, progress=False).corrupt == (corpus.manifest["key"][0].as_py(),)
    rows = sum(len(batch["tokens"]) for batch in Loader(corpus.with_copy(plain), 2, drop_last=False))
    assert rows == corpus.rows
    assert verify(corpus, progress=False).ok


def test_no_secret_travels_or_shows(make_encrypted: MakeTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_KEK", SECRET.hex())
    tier = open_tier(make_encrypted("lake").url, "lake", options={"encryption_key": "env:LAKE_KEK"})
    corpus = small(tier)
    store: Any = tier.store
    shown = " ".join(
        [
            repr(tier),
            repr(store),
            repr(store.inner.keyring),
            repr(vars(store.inner)),
            repr(vars(store.inner.keys)),
        ]
    )
    travelled = pickle.dumps(tier) + pickle.dumps(corpus)
    tier.close()
    for form in (SECRET, SECRET.hex().encode()):
        assert form not in travelled
        assert form.hex() not in shown
        assert form.decode(errors="replace") not in shown
    with pytest.raises(TypeError):
        pickle.dumps(store.inner.keys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encryption_key": SECRET.hex()}, "holds a credential itself"),
        ({"encryption_key": "env:A", "encryption_previous_key": SECRET.hex()}, "holds a credential itself"),
        ({"encryption_previous_key": "env:A"}, "without an encryption_key"),
        ({"secret_access_key": "kms:a/b"}, "holds a credential itself"),
    ],
)
def test_open_tier_takes_references_alone(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        open_tier("s3://bucket", "lake", options=options)
    assert SECRET.hex() not in str(caught.value)
    assert open_tier("s3://bucket", options={"encryption_key": "kms:vault/lake"}).encrypted
    assert not open_tier("s3://bucket").encrypted


def test_an_object_tier_holds_ciphertext(
    moto_endpoint: Endpoint, s3_environment: None, tmp_path: Path
) -> None:
    for driver in ("obstore", "fsspec"):
        url = f"s3://{BUCKET}/encrypted-{driver}"
        options = {**moto_endpoint.options(), "driver": driver}
        vault = open_tier(url, "vault", options={**options, "encryption_key": key_file(tmp_path)})
        bare = open_tier(url, "bare", options=options)
        corpus = small(vault, rows=8)
        assert verify(open_corpus(vault, "web"), progress=False).ok
        assert bytes(bare.store.read("web/zarr.json")).startswith(MAGIC)
        with pytest.raises(ConfigError, match="is encrypted"):
            open_corpus(bare, "web")
        assert corpus.rows == 8
        vault.close()
        bare.close()


def test_the_command_line_tells_and_rotates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiering.cli.main import run

    def tiering(*words: object) -> tuple[int, Any]:
        code = run(["--json", *map(str, words)])
        return code, json.loads(capsys.readouterr().out)

    def config(*keys: str) -> Path:
        names = zip(("encryption_key", "encryption_previous_key"), keys, strict=False)
        told = ", ".join(f'{name} = "file:{tmp_path}/{key}"' for name, key in names)
        (tmp_path / "t.toml").write_text(f'[tiers.lake]\nurl = "{tmp_path}/lake"\noptions = {{{told}}}\n')
        return tmp_path / "t.toml"

    first = tiering("keygen", tmp_path / "one")[1]["key"]
    second = tiering("keygen", tmp_path / "two")[1]["key"]
    assert tiering("keygen", tmp_path / "two")[0] == 2
    (tmp_path / "in.txt").write_text("some text\n" * 50)
    assert (
        tiering(
            "--config",
            config("one"),
            "ingest",
            tmp_path / "in.txt",
            "--to",
            "lake",
            "--name",
            "web",
            "--row-tokens",
            8,
        )[0]
        == 0
    )
    assert tiering("--config", config("one"), "show", "lake", "web")[1]["encryption"] == "AES-256-GCM"
    assert tiering("ls", tmp_path / "lake")[1]["corpora"][0]["problem"].count("encryption_key") == 2
    code, answer = tiering("--config", config("two"), "show", "lake", "web")
    assert code == 2
    assert first in answer["message"]
    assert second in answer["message"]
    rotated = {"ok": True, "rotated": True, "key": second}
    assert tiering("--config", config("two", "one"), "rotate", "web", "--on", "lake") == (0, rotated)
    assert tiering("--config", config("two"), "verify", "web", "--on", "lake")[1]["ok"]

    shredding = ("forget", "web", "--on", "lake", "--last-copy", "--yes", "--shred")
    assert tiering("--config", config("two"), *shredding, "--version", 1)[0] == 2
    assert tiering("--config", config("two"), *shredding)[1]["bytes"] > 0
    assert not [name for name in files(tmp_path / "lake") if name.startswith("web/")]
    assert tiering("--config", config(), *shredding)[0] == 2  # not encrypted: no key to destroy
    assert tiering("--config", config("two"), *shredding) == (0, {"ok": True, "bytes": 0})
