"""No secret leaves the client that signs with it: what comes out of a job is searched for it."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path

import pytest

from tests.corpora import start_python
from tests.servers import BUCKET, SECRET_ACCESS_KEY, Endpoint

SIGNED_URL = b"X-Amz-Signature"
PROGRAM = "import sys; from tests.security.leaky_work import main; main(*sys.argv[1:])"


def disguises(secret: str) -> dict[str, bytes]:
    """The forms in which a secret would still be one."""
    plain = secret.encode()
    return {
        "plain": plain,
        "quoted": urllib.parse.quote(secret, safe="").encode(),
        "hex": plain.hex().encode(),
        "reversed": plain[::-1],
        # Whatever stands before it, two of three alignments lose a letter at each end.
        **{
            f"base64 at {shift}": base64.b64encode(b"x" * shift + plain)[4 if shift else 0 : -4]
            for shift in range(3)
        },
    }


def assert_no_secret(where: str, data: bytes) -> None:
    for form, needle in disguises(SECRET_ACCESS_KEY).items():
        at = data.find(needle)
        assert at < 0, f"{where} shows the secret ({form}): {data[max(0, at - 300) : at + 100]!r}"
    at = data.find(SIGNED_URL)  # whoever has one may do what it asks for
    assert at < 0, f"{where} shows a URL that is signed: {data[max(0, at - 300) : at + 100]!r}"


@pytest.mark.parametrize(
    ("driver", "server"),
    [
        pytest.param("obstore", "ceph_endpoint", marks=pytest.mark.ceph),
        ("s3fs", "moto_endpoint"),
        pytest.param("obstore", "moto_endpoint", marks=pytest.mark.nightly),
        pytest.param("s3fs", "ceph_endpoint", marks=[pytest.mark.ceph, pytest.mark.nightly]),
    ],
)
def test_nothing_that_comes_out_holds_the_secret(
    request: pytest.FixtureRequest, tmp_path: Path, s3_environment: None, server: str, driver: str
) -> None:
    endpoint: Endpoint = request.getfixturevalue(server)
    prefix = f"canary-{driver}"
    options = endpoint.options(driver=driver)
    with start_python(PROGRAM, f"s3://{BUCKET}/{prefix}", json.dumps(options), tmp_path) as process:
        try:
            out, errors = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 0, errors[-4000:]
    for word in ("tier:", "plan:", "pickle:", "loader:", "failure:", "events:", "processes:", "release:"):
        assert word in out
    assert_no_secret("standard output", out.encode())
    assert_no_secret("standard error", errors.encode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "worker.log" for path in files)
    for path in files:
        assert_no_secret(str(path), path.read_bytes())
    client = endpoint.client()
    for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ()):
        assert_no_secret(item["Key"], client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read())


@pytest.mark.parametrize("form", disguises(SECRET_ACCESS_KEY))
def test_the_search_finds_what_it_looks_for(form: str) -> None:
    leak = b"some words " + disguises(SECRET_ACCESS_KEY)[form] + b" more"
    with pytest.raises(AssertionError, match="shows the secret"):
        assert_no_secret("a leak", leak)


def test_the_search_finds_a_signed_url() -> None:
    with pytest.raises(AssertionError, match="shows a URL that is signed"):
        assert_no_secret("a leak", b"http://127.0.0.1/b/k?X-Amz-Date=1&X-Amz-Signature=00")
