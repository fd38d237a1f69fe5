"""Sessions of botocore and aiobotocore whose descriptions of AWS's services are read once a process.

Each session would parse them anew from a megabyte of JSON, a tenth of a second, for each tier that is opened.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from aiobotocore.session import AioSession  # type: ignore[import-untyped,unused-ignore]
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped,unused-ignore]
from botocore.loaders import create_loader  # type: ignore[import-untyped,unused-ignore]
from botocore.session import Session  # type: ignore[import-untyped,unused-ignore]

from tiering.errors import ConfigError

_LOADER: Final = "data_loader"  # botocore's name for what reads them


def blocking_session(where: str) -> Any:
    """A new session whose clients block, for what `where` names.

    Raises:
        ConfigError: the AWS configuration of this user is broken, or names a profile that is not there.
    """
    return _sharing(Session(), where)


def asyncio_session(where: str, profile: str | None = None) -> Any:
    """A new session whose clients are awaited, as s3fs needs one, with a profile of the AWS configuration.

    Raises:
        ConfigError: as of `blocking_session`.
    """
    return _sharing(AioSession(profile=profile), where)


def _sharing(session: Any, where: str) -> Any:
    try:
        data_path = session.get_config_variable("data_path")
    except BotoCoreError as error:
        raise ConfigError(
            f"the AWS configuration cannot be used for {where}: {error}",
            hint="Correct the tier's profile, AWS_PROFILE, or the file that AWS_CONFIG_FILE names",
        ) from None
    session.register_component(_LOADER, _loader(data_path))
    return session


@cache
def _loader(data_path: str | None) -> Any:
    return create_loader(data_path)
