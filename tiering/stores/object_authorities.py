"""The authorities that an S3 tier trusts beside those of the machine: the file that AWS_CA_BUNDLE names.

Invariant: nothing but certificates is taken from the file, though it hold a private key, too. They are added
to the trusted ones, which are the machine's or those in SSL_CERT_FILE.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Final

from tiering.errors import ConfigError

_VARIABLE: Final = "AWS_CA_BUNDLE"
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def bundled_authorities(tier: str) -> str:
    """Certificates in PEM; empty where the variable is not set.

    Raises:
        ConfigError: the file cannot be read, or has a certificate that is none.
    """
    path = os.environ.get(_VARIABLE)
    if not path:
        return ""
    hint = f"Name a file of certificates in PEM, or unset {_VARIABLE}"
    try:
        found = _CERTIFICATE.findall(Path(path).read_text(errors="replace"))
    except OSError as error:
        problem = f"{_VARIABLE} names {path!r}, which cannot be read: {error.strerror}"
        raise ConfigError(problem, tier=tier, hint=hint) from None
    certificates = "\n".join(found)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"{_VARIABLE} names {path!r}, which has no certificates", tier=tier, hint=hint
        ) from None
    return certificates
