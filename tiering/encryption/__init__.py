"""Encryption at rest: key sources, the corpus key, the ciphertext format, and what is done with keys.

`tiering.stores.encrypted` puts it around any store; `tiering.encryption.lifecycle` rotates, shreds and tells.
"""
