"""Object tiers that fail: a typed error within the deadline, and never a secret in it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from tests.proxy import Fault, Request, proxy, status
from tests.servers import BUCKET, SECRET_ACCESS_KEY, Endpoint, free_port, silent_server
from tiering.errors import ConfigError, Conflict, DeadlineExceeded, NotFound, Unavailable, UsageError
from tiering.stores import object as object_store
from tiering.stores.base import Store
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import ObjectStore

MAKERS = pytest.mark.parametrize("make", [ObjectStore, FsspecStore])
StoreMaker = type[ObjectStore] | type[FsspecStore]

CALLS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("k"),
    "read_into": lambda store: store.read_into("k", 0, memoryview(bytearray(10))),
    "write": lambda store: store.write("k", [b"x"]),
    "create": lambda store: store.write("k", [b"x"], if_absent=True),
    "delete": lambda store: store.delete("k"),
    "list": lambda store: list(store.list()),
    "children": lambda store: store.children(),
    "stat": lambda store: store.stat("k"),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())

pytestmark = pytest.mark.usefixtures("s3_environment")


@pytest.fixture(scope="module")
def silent_url() -> Iterator[str]:
    with silent_server() as url:
        yield url


def check_clean(error: BaseException) -> None:
    """No secret and no text of another library in `error` or what is printed of it."""
    printed = "".join(traceback.format_exception(error)) + str(error) + repr(error)
    assert SECRET_ACCESS_KEY not in printed
    assert "Debug source" not in printed


@MAKERS
@EVERY_CALL
def test_unreachable_endpoint_is_unavailable(make: StoreMaker, call: Callable[[Store], object]) -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}", "none")
    with make("lake", "s3://bucket/x", endpoint.options(deadline_seconds=30)) as store:
        with pytest.raises(Unavailable, match="tier 'lake'") as caught:
            call(store)
        assert caught.value.retryable
        check_clean(caught.value)


@MAKERS
@EVERY_CALL
def test_silent_endpoint_exceeds_the_deadline(
    make: StoreMaker, call: Callable[[Store], object], silent_url: str
) -> None:
    with make("lake", "s3://bucket/x", Endpoint(silent_url, "none").options(deadline_seconds=0.3)) as store:
        with pytest.raises(DeadlineExceeded, match=r"no answer in time.*tier 'lake'") as caught:
            call(store)
        check_clean(caught.value)


@pytest.mark.ceph
@MAKERS
@EVERY_CALL
def test_wrong_secret_is_one_clear_error(
    make: StoreMaker,
    call: Callable[[Store], object],
    ceph_endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIERING_TEST_SECRET_ACCESS_KEY", f"not-{SECRET_ACCESS_KEY}")
    with make("lake", f"s3://{BUCKET}/x", ceph_endpoint.options()) as store:
        with pytest.raises(ConfigError, match="credentials were refused") as caught:
            call(store)
        assert "secret_access_key = env:TIERING_TEST_SECRET_ACCESS_KEY" in str(caught.value)
        check_clean(caught.value)


@pytest.mark.parametrize("server", ["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
@MAKERS
@EVERY_CALL
def test_missing_bucket_is_not_found_by_its_name(
    make: StoreMaker, call: Callable[[Store], object], server: str, request: pytest.FixtureRequest
) -> None:
    endpoint: Endpoint = request.getfixturevalue(f"{server}_endpoint")
    with (
        make("lake", "s3://no-such-bucket/x", endpoint.options()) as store,
        pytest.raises(NotFound, match=r"no bucket 'no-such-bucket'.*tier 'lake'.*Make the bucket"),
    ):
        call(store)


@MAKERS
def test_missing_reference_is_told_at_the_first_call(
    make: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIERING_TEST_SECRET_ACCESS_KEY")
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}", "none")
    with (
        make("lake", "s3://bucket/x", endpoint.options()) as store,
        pytest.raises(
            ConfigError, match=r"'TIERING_TEST_SECRET_ACCESS_KEY'.*'secret_access_key' of tier 'lake'"
        ),
    ):
        store.read("k")


@MAKERS
def test_literal_secret_is_refused_when_the_store_is_made(make: StoreMaker) -> None:
    with pytest.raises(ConfigError) as caught:
        make("lake", "s3://bucket/x", {"secret_access_key": SECRET_ACCESS_KEY, "access_key_id": "env:X"})
    check_clean(caught.value)


@MAKERS
def test_store_shows_and_pickles_no_secret(make: StoreMaker, moto_endpoint: Endpoint) -> None:
    with make("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", moto_endpoint.options()) as store:
        store.write("k", [b"x"])
        assert SECRET_ACCESS_KEY not in repr(store)
        assert SECRET_ACCESS_KEY not in repr(vars(store))
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="store 'lake' is not pickled"):
                way(store)


@MAKERS
def test_profile_signs_in(
    make: StoreMaker,
    ceph_or_moto: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shared = tmp_path_factory.mktemp("aws") / "credentials"
    options = ceph_or_moto.options(profile="train")
    shared.write_text(
        f"[train]\naws_access_key_id = test-access-key\naws_secret_access_key = {SECRET_ACCESS_KEY}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(shared.with_name("none")))
    del options["access_key_id"], options["secret_access_key"]
    with make("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", options) as store:
        store.write("k", [b"x"])
        assert store.read("k") == b"x"


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def ceph_or_moto(request: pytest.FixtureRequest) -> Endpoint:
    endpoint: Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return endpoint


def test_session_token_of_the_environment_does_not_join_given_keys(
    ceph_or_moto: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    with ObjectStore("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", ceph_or_moto.options()) as store:
        assert store.write("k", [b"x"]).nbytes == 1


@MAKERS
@pytest.mark.parametrize("step", ["part", "complete"])
def test_failed_multipart_upload_is_aborted(
    make: StoreMaker, step: str, ceph_or_moto: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "SINGLE_PUT_BYTES", 16 << 20)
    prefix = uuid.uuid4().hex

    def rule(request: Request) -> Fault | None:
        complete = request.method == "POST" and "uploadId=" in request.path
        fails = "partNumber=2" in request.path if step == "part" else complete
        return status(500) if fails else None

    data = bytes(20 << 20) if make is ObjectStore else bytes(100 << 20)
    with (
        proxy(ceph_or_moto) as relay,
        make("lake", f"s3://{BUCKET}/{prefix}", relay.endpoint.options()) as store,
    ):
        relay.rule = rule
        store.write("k", [b"old"])
        with pytest.raises(Unavailable):
            store.write("k", [data])
        assert store.read("k") == b"old"
    client = ceph_or_moto.client()
    uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    client.close()
    assert [upload for upload in uploads if upload["Key"].startswith(prefix)] == []


def test_multipart_upload_reads_back(ceph_or_moto: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SINGLE_PUT_BYTES", 16 << 20)
    data = bytes(range(256)) * (20 << 12)
    with ObjectStore("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", ceph_or_moto.options()) as store:
        info = store.write("k", [data[:5], data[5 : 9 << 20], data[9 << 20 :]])
        assert info == store.stat("k")
        assert info.etag
        assert store.read("k") == data
        with pytest.raises(Conflict):
            store.write("k", [data], if_absent=True)


def test_read_that_meets_an_overwrite_starts_over(ceph_or_moto: Endpoint) -> None:
    old, new = bytes(20 << 20), b"\1" * (20 << 20)
    options, url = ceph_or_moto.options(), f"s3://{BUCKET}/{uuid.uuid4().hex}"
    pieces = 0

    class Overwritten(ObjectStore):
        def _fetch_piece(self, *args: object) -> None:
            nonlocal pieces
            pieces += 1
            if pieces == 1:
                other.write("k", [new])
            super()._fetch_piece(*args)  # type: ignore[arg-type]

    with ObjectStore("other", url, options) as other, Overwritten("lake", url, options) as store:
        other.write("k", [old])
        assert store.read("k") in (old, new)
        assert store.read("k") == new


def test_read_overwritten_again_and_again_is_unavailable(moto_endpoint: Endpoint) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"

    class Overwritten(ObjectStore):
        def _fetch_piece(self, key: str, offset: int, buffer: memoryview, etag: str) -> None:
            super()._fetch_piece(key, offset, buffer, '"another"')

    with Overwritten("lake", url, moto_endpoint.options()) as store:
        store.write("k", [bytes(9 << 20)])
        with pytest.raises(Unavailable, match="overwritten during each of 3 reads"):
            store.read("k")


def test_list_passes_over_what_is_no_key(ceph_or_moto: Endpoint) -> None:
    prefix = uuid.uuid4().hex
    client = ceph_or_moto.client()
    for name in ("", "folder/", "folder/k", "empty/", "back\\slash", ".tmp-1"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"")
    with ObjectStore("lake", f"s3://{BUCKET}/{prefix}", ceph_or_moto.options()) as store:
        assert [info.key for info in store.list()] == ["folder/k"]
        assert [info.key for info in store.list("folder")] == ["folder/k"]
        assert store.children() == ["empty", "folder"]
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/a//b", Body=b"")
        with pytest.raises(UsageError, match=r"empty or a '\.\.' segment"):
            list(store.list())
    client.close()


def test_write_over_the_limit_of_one_put_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "MAX_PUT_BYTES", 10)
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}", "none")
    with (
        ObjectStore("lake", "s3://bucket", endpoint.options()) as store,
        pytest.raises(UsageError, match="too many for a conditional write"),
    ):
        store.write("k", [bytes(11)], if_absent=True)


def _read_in_child(store: Store, results: Connection) -> None:
    try:
        store.read("k")
    except UsageError as error:
        results.send(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_forked_process_is_told_to_spawn(moto_endpoint: Endpoint) -> None:
    with ObjectStore("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", moto_endpoint.options()) as store:
        store.write("k", [b"x"])
        context = multiprocessing.get_context("fork")
        results, child_end = context.Pipe(duplex=False)
        child = context.Process(target=_read_in_child, args=(store, child_end))
        child.start()
        try:
            assert results.poll(30)
            assert "forkserver" in results.recv()
        finally:
            child.kill()
            child.join()
            child.close()
            results.close()
            child_end.close()
