"""Layouts: how rows become the bytes of a shard and back. Pure: bytes in, bytes out, no files, no stores."""
