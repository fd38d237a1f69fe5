"""Credentials by reference: a configuration says where a secret lies, never what it is.

Invariant: options that were checked here hold no secret, so they may be shown, logged and pickled. A secret
exists only between `resolve` and the client that is made from it, and no message of this module shows one.

A reference is ``env:NAME`` (an environment variable) or ``file:PATH`` (the text of a file, as Kubernetes
and systemd hand secrets out); the keys of an encrypted tier may be ``kms:NAME/KEY-ID`` too. The option
``profile`` names a profile of the shared AWS configuration. An S3 tier without any of them uses what its
client finds: the AWS environment variables, then the instance's role.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from tiering.errors import ConfigError

OptionValue = str | int | float | bool
Options = Mapping[str, OptionValue]

REFRESH = timedelta(minutes=15)
"""How long a client may use resolved credentials before it looks at the references again."""

ENCRYPTION_OPTIONS = ("encryption_key", "encryption_previous_key")
"""What refers to the keys of an encrypted tier: the one to wrap by, and one that may still be in use."""

_NAMES = frozenset({"key", "secret", "token", "password", "passwd", "passphrase", "sas"})
_PARTS = re.compile(
    r"secret|token|password|passwd|passphrase|credential|access_?key|account_?key|api_?key|sas_"
)
_KEY_SUFFIXES = ("_key", "-key")


class AwsKeys(TypedDict):
    """What an S3 client signs with, in the words of obstore."""

    access_key_id: str
    secret_access_key: str
    token: str | None
    expires_at: datetime | None


def is_credential(option: str) -> bool:
    """Whether the option named so holds a credential, judged by its name."""
    name = option.lower()
    return name in _NAMES or name.endswith(_KEY_SUFFIXES) or _PARTS.search(name) is not None


def check_references(options: Options, where: str) -> None:
    """Raise unless every credential among `options` is a reference.

    Args:
        options: option names and values.
        where: what they belong to, such as ``tier 'lake'``, for the message.

    Raises:
        ConfigError: names the option and shows a right value; never shows the value.
    """
    for option, value in options.items():
        if is_credential(option) and not (_is_reference(value) or _is_kms_reference(option, value)):
            raise ConfigError(
                f"option {option!r} of {where} holds a credential itself",
                hint=f'Write where it lies: {option} = "env:{_example(option)}" or "file:/run/secrets/NAME"',
            )


def check_url(url: str, where: str) -> None:
    """Raise when `url` carries a user, a password or a query, where credentials hide.

    Raises:
        ConfigError: never shows the URL.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of {where} has a user, a query or a fragment, where a credential could be",
            hint='Write a plain URL such as "s3://bucket/prefix" and give credentials as options',
        )


def resolve(options: Options, where: str) -> dict[str, OptionValue]:
    """`options` with every reference replaced by what it refers to.

    The result holds secrets: pass it to a client at once and keep it nowhere.

    Raises:
        ConfigError: names the environment variable or file that is missing or empty.
    """
    check_references(options, where)
    return {
        option: _look_up(option, str(value), where) if is_credential(option) else value
        for option, value in options.items()
    }


def aws_keys(options: Options, where: str) -> Callable[[], AwsKeys] | None:
    """A function that looks the S3 credentials of `options` up anew at each call; None where they name none.

    It holds references only, so whatever holds it shows no secret, and a rotated secret is picked up.

    Raises:
        ConfigError: a half pair of keys, or keys beside a profile.
    """
    given = {"access_key_id", "secret_access_key", "session_token", "profile"} & options.keys()
    if not given:
        return None
    if given == {"profile"}:
        return lambda: _profile_keys(str(options["profile"]), where)
    if "profile" in given or not {"access_key_id", "secret_access_key"} <= given:
        raise ConfigError(
            f"{where} has the credential options {', '.join(sorted(given))}, which do not go together",
            hint="Give access_key_id and secret_access_key, with session_token if there is one, or a profile",
        )
    references = {option: options[option] for option in given}
    return lambda: _referred_keys(references, where)


def _referred_keys(references: Options, where: str) -> AwsKeys:
    found = resolve(references, where)
    token = found.get("session_token")
    return {
        "access_key_id": str(found["access_key_id"]),
        "secret_access_key": str(found["secret_access_key"]),
        "token": None if token is None else str(token),
        "expires_at": datetime.now(UTC) + REFRESH,
    }


def _profile_keys(profile: str, where: str) -> AwsKeys:
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped,unused-ignore]
    from botocore.session import Session  # type: ignore[import-untyped,unused-ignore]

    try:
        keys = Session(profile=profile).get_credentials()
        frozen = keys.get_frozen_credentials() if keys else None
    except BotoCoreError as error:
        raise ConfigError(f"profile {profile!r} of {where} cannot be used: {error}") from None
    if frozen is None:
        raise ConfigError(
            f"profile {profile!r} of {where} holds no credentials",
            hint="Add aws_access_key_id and aws_secret_access_key, a role or an SSO session to that profile",
        )
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + REFRESH,
    }


def _is_reference(value: OptionValue) -> bool:
    kind, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    return kind in ("env", "file") and bool(name.strip())


def _is_kms_reference(option: str, value: OptionValue) -> bool:
    return option in ENCRYPTION_OPTIONS and str(value).startswith("kms:")


def _look_up(option: str, reference: str, where: str) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env":
        found = os.environ.get(name, "")
        what, hint = f"environment variable {name!r}", f"Set {name} for this process and its workers"
    else:
        what, hint = f"file {name!r}", "Write the credential to that file, readable by this user"
        try:
            found = Path(name).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError, RuntimeError):  # the last where there is no home
            found = ""
    if not found:
        raise ConfigError(
            f"{what}, which option {option!r} of {where} refers to, is missing or empty", hint=hint
        )
    return found


def _example(option: str) -> str:
    return "LAKE_" + re.sub(r"\W+", "_", option).upper()
