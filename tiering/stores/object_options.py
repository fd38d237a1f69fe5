"""Options of an object tier: what may be said about a bucket, and the obstore client that follows from it.

Invariant: an instance holds references to credentials, never a credential; the client that `open` makes does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import obstore.store

from tiering.credentials import (
    Options,
    OptionValue,
    aws_keys,
    check_references,
    check_url,
    is_credential,
    resolve,
)
from tiering.errors import ConfigError, NotFound
from tiering.keys import validate_prefix
from tiering.stores.object_authorities import bundled_authorities

DEADLINE_SECONDS = 30.0
CONNECT_SECONDS = 5
_FIRST_BACKOFF = timedelta(milliseconds=100)
_LAST_BACKOFF = timedelta(seconds=1)

_BOOLEANS = ("anonymous", "allow_http", "verify_tls", "virtual_hosted_style")
_OURS = {"allow_http": "", "deadline_seconds": "", "verify_tls": ""}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "s3": {
        **_OURS,
        "access_key_id": "",
        "anonymous": "skip_signature",
        "endpoint_url": "endpoint",
        "profile": "",
        "region": "region",
        "secret_access_key": "",
        "session_token": "",
        "virtual_hosted_style": "virtual_hosted_style_request",
    },
    "gs": {
        **_OURS,
        "anonymous": "skip_signature",
        "endpoint_url": "base_url",
        "service_account_key": "service_account_key",
    },
    "az": {
        **_OURS,
        "account_key": "account_key",
        "account_name": "account_name",
        "anonymous": "skip_signature",
        "endpoint_url": "endpoint",
        "sas_token": "sas_key",
    },
}
"""Per scheme, option to the name obstore has for it; empty where it is not simply handed on."""

_ALIASES = {"s3a": "s3", "abfs": "az"}


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """Where a bucket is and how to reach it.

    Options, credentials among them as references (see `tiering.credentials`):

    - all: ``endpoint_url``, ``anonymous``, ``allow_http`` (beyond loopback), ``verify_tls`` (false on
      loopback alone), ``deadline_seconds``
    - s3: ``region``, ``virtual_hosted_style`` (the bucket before the host, where ``endpoint_url`` lacks it),
      ``profile``, ``access_key_id``, ``secret_access_key``, ``session_token``
    - gs: ``service_account_key``
    - az: ``account_name``, ``account_key``, ``sas_token``
    """

    tier: str
    scheme: str
    bucket: str
    prefix: str
    """Folder of all keys, without slashes at its ends; empty for the whole bucket."""
    options: Options
    deadline_seconds: float = DEADLINE_SECONDS
    """How long a silent server is waited for."""

    @classmethod
    def parse(cls, tier: str, url: str, options: Options) -> Self:
        """Check `url` and `options`.

        Raises:
            ConfigError: unknown scheme or option, wrong value, or a credential that is no reference.
        """
        where = f"tier {tier!r}"
        check_url(url, where)
        parts = urlsplit(url)
        scheme = _ALIASES.get(parts.scheme, parts.scheme)
        if scheme not in _NAMES:
            known = ", ".join(f"{known}://" for known in (*_NAMES, *_ALIASES))
            raise ConfigError(f"{where} has the scheme {parts.scheme!r}, not one of {known}")
        if not parts.netloc:
            raise ConfigError(f"the URL of {where} names no bucket", hint=f'Write "{scheme}://bucket/prefix"')
        _check_names(scheme, options, where)
        check_references(options, where)
        _check_endpoint(options, where)
        _check_style(options, parts.netloc, where)
        return cls(
            tier,
            scheme,
            parts.netloc,
            validate_prefix(parts.path.strip("/")),
            MappingProxyType(dict(options)),
            deadline_seconds(options, where),
        )

    @property
    def host(self) -> str:
        """The server, for messages."""
        endpoint = str(self.options.get("endpoint_url", ""))
        return urlsplit(endpoint).netloc or f"the {self.scheme}:// service"

    @property
    def skips_tls_check(self) -> bool:
        """Whether any certificate is taken, which only loopback may ask for."""
        return self.options.get("verify_tls") is False

    @property
    def authorities(self) -> str:
        """Certificates in PEM that are trusted beside the machine's; empty where there are none.

        Raises:
            ConfigError: ``AWS_CA_BUNDLE`` names no file of certificates.
        """
        plain = str(self.options.get("endpoint_url", "")).startswith("http://")
        return "" if self.scheme != "s3" or plain else bundled_authorities(self.tier)

    @property
    def is_cloud(self) -> bool:
        """Whether this is the provider's own service, which keeps conditional writes."""
        return self.scheme != "s3" or "endpoint_url" not in self.options

    def open(self, silence_seconds: float, retries: int) -> Any:
        """A new obstore client.

        Args:
            silence_seconds: how long to wait for the answer to a request, and for each part of its body.
            retries: how often a request that failed is sent anew, none of them after `silence_seconds`.

        Raises:
            ConfigError: a reference that refers to nothing, or an ``AWS_CA_BUNDLE`` that does.
        """
        where = f"tier {self.tier!r}"
        names = _NAMES[self.scheme]
        given = resolve({option: value for option, value in self.options.items() if names[option]}, where)
        config: dict[str, OptionValue] = {names[option]: value for option, value in given.items()}
        extra: dict[str, Any] = {}
        if self.scheme == "s3":
            config.setdefault("region", "us-east-1")
            if config.get("virtual_hosted_style_request") and (endpoint := config.get("endpoint")):
                # obstore takes an endpoint as it is; the other clients put the bucket before it themselves.
                config["endpoint"] = str(endpoint).replace("://", f"://{self.bucket}.", 1)
            config["disable_bulk_delete"] = True  # not every server of S3 has it
            if keys := aws_keys(self.options, where):
                keys()  # a missing reference is an error here and now, in its own words
                # A provider, because static keys would be joined by a session token of the environment.
                extra["credential_provider"] = keys
        trusted = {"root_certificate": pem} if (pem := self.authorities) else {}
        silence = timedelta(seconds=silence_seconds)
        make = {
            "s3": obstore.store.S3Store,
            "gs": obstore.store.GCSStore,
            "az": obstore.store.AzureStore,
        }[self.scheme]
        return make(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options={
                "allow_http": str(self.options.get("endpoint_url", "")).startswith("http://"),
                "allow_invalid_certificates": self.skips_tls_check,
                **trusted,
                "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, silence_seconds)),
                "read_timeout": silence,
                "timeout": timedelta(
                    days=1
                ),  # the default of 30 s would cut long transfers that make progress
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": silence,
                "backoff": {"init_backoff": _FIRST_BACKOFF, "max_backoff": _LAST_BACKOFF, "base": 2},
            },
            **extra,
        )

    def refused(self, answer: str) -> ConfigError:
        """The error for credentials that the server does not take."""
        used = sorted(f"{option} = {value}" for option, value in self.options.items() if _is_shown(option))
        hint = (
            f"Used were {', '.join(used)}"
            if used
            else "None were given, so those of the environment were used"
        )
        return ConfigError(
            f"the credentials were refused by {self.host}: {answer}",
            tier=self.tier,
            hint=f"{hint}; look at them, at their rights and at the clock",
        )

    def untrusted(self) -> ConfigError:
        """The error for a certificate that proves nothing."""
        return ConfigError(
            f"the certificate of {self.host} is of no authority that is trusted here",
            tier=self.tier,
            hint=f"Look at endpoint_url; name the certificate of your authority in {_trust_in(self.scheme)}",
        )

    def no_bucket(self) -> NotFound:
        """The error for a bucket that does not exist."""
        return NotFound(
            f"no bucket {self.bucket!r} at {self.host}",
            tier=self.tier,
            hint="Make the bucket, or correct the url or endpoint_url of the tier",
        )


def _trust_in(scheme: str) -> str:
    return "AWS_CA_BUNDLE" if scheme == "s3" else "SSL_CERT_FILE"


def _is_shown(option: str) -> bool:
    return option in ("profile", "anonymous") or is_credential(option)  # of a credential, its reference


def _check_names(scheme: str, options: Options, where: str) -> None:
    for option, value in options.items():
        if option not in _NAMES[scheme]:
            known = ", ".join(sorted(_NAMES[scheme]))
            raise ConfigError(f"{where} has the unknown option {option!r}", hint=f"The options are {known}")
        if option in _BOOLEANS and not isinstance(value, bool):
            raise ConfigError(
                f"option {option!r} of {where} is {value!r}", hint=f"Write {option} = true or false"
            )


def _check_endpoint(options: Options, where: str) -> None:
    url = str(options.get("endpoint_url", ""))
    if options.get("verify_tls") is False and not _is_loopback(urlsplit(url).hostname or ""):
        raise ConfigError(
            f"{where} has verify_tls = false, and its endpoint is not on loopback",
            hint="Name the certificate of your authority in AWS_CA_BUNDLE (gs, az: in SSL_CERT_FILE) instead",
        )
    if "endpoint_url" not in options:
        return
    check_url(url, f"endpoint_url of {where}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"endpoint_url of {where} is {url!r}", hint='Write such as "https://s3.example.org"'
        )
    if parts.scheme == "http" and not (options.get("allow_http") or _is_loopback(parts.hostname)):
        raise ConfigError(
            f"endpoint_url of {where} is {url!r}, which sends data and signatures in the clear",
            hint="Use https://, or say allow_http = true on a network you trust",
        )


def _check_style(options: Options, bucket: str, where: str) -> None:
    host = urlsplit(str(options.get("endpoint_url", ""))).hostname
    if not options.get("virtual_hosted_style") or not host:
        return
    if host.startswith(f"{bucket}."):
        raise ConfigError(
            f"endpoint_url of {where} begins with the bucket, which virtual_hosted_style puts there",
            hint=f"Write the server alone, such as {host.removeprefix(f'{bucket}.')}",
        )
    if _is_address(host):
        raise ConfigError(
            f"{where} has virtual_hosted_style = true, and its endpoint {host} is an address",
            hint="Write the name of the server, or leave virtual_hosted_style out",
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, section 6.3


def deadline_seconds(options: Options, where: str) -> float:
    """The option ``deadline_seconds``, checked; 30 where it is not given."""
    value = options.get("deadline_seconds", DEADLINE_SECONDS)
    if isinstance(value, bool | str) or not 0 < value <= 3600:
        raise ConfigError(
            f"option 'deadline_seconds' of {where} is {value!r}",
            hint="Write seconds such as deadline_seconds = 30",
        )
    return float(value)
