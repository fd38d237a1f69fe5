"""Whether a server keeps conditional writes, found out before anything relies on it.

Invariant: a write with ``if_absent`` is sent only to a server that was seen to refuse the second of two such
writes. Some servers (``rclone serve s3``, for one) ignore ``If-None-Match`` and overwrite without a word: two
writers would then publish over each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tiering.errors import Conflict, UsageError
from tiering.probe_keys import probe_key


class ConditionalCreate:
    """Asks once, with two small writes and a delete of a `probe_key`, and remembers the answer.

    Args:
        tier: its name, for messages.
        create: writes a small object at a key unless it exists, else raises `Conflict`.
        delete: deletes a key.
        known: True where the service is known to keep conditions and need not be asked.
    """

    def __init__(
        self, tier: str, create: Callable[[str], None], delete: Callable[[str], None], *, known: bool
    ) -> None:
        self._tier = tier
        self._create = create
        self._delete = delete
        self._lock = threading.Lock()
        self._answer = True if known else None

    def supported(self) -> bool:
        """Whether the server refuses to create what exists; errors of asking are raised, not remembered."""
        with self._lock:
            if self._answer is None:
                self._answer = self._ask()
            return self._answer

    def require(self, key: str) -> None:
        """Raise `UsageError` where the server would overwrite."""
        if not self.supported():
            raise UsageError(
                "the server ignores If-None-Match, so two writers would overwrite each other unseen",
                tier=self._tier,
                key=key,
                hint="Read from it, and write through a server that has conditional writes (S3, GCS, Azure, "
                "Ceph, MinIO) or as a file tier; 'tiering doctor' tells what a server can do",
            )

    def _ask(self) -> bool:
        key = probe_key()
        self._create(key)
        try:
            self._create(key)
        except Conflict:
            return True
        else:
            return False
        finally:
            self._delete(key)
