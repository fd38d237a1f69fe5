"""The metadata documents of a Zarr group: JSON to and from the form of each array.

Invariant: `parse_group` accepts what `group_documents` or zarr-python writes for such arrays (the group's
metadata consolidated inline, as zarr-python does) and refuses everything else; a document it accepts means
the same to every reader of Zarr v3. Nothing in a document is trusted before it was compared with the
document that would be written for the form found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tiering.digest import Buffer
from tiering.errors import FormatError, UnsupportedVersion

DOCUMENT: Final = "zarr.json"
MAX_DOCUMENT_BYTES: Final = 16 << 20
MAX_ARRAYS: Final = 4096
DTYPES: Final = frozenset(
    ["bool", "float16", "float32", "float64", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)

_ZARR_FORMAT: Final = 3
_SINGLE_BYTE: Final = frozenset(["bool", "int8", "uint8"])
_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: Final = {"name": "crc32c"}
_FREE: Final = frozenset(["attributes", "dimension_names"])  # they change nothing in what is decoded

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """What one array's document says.

    Attributes:
        name: of the array in its group.
        dtype: name of the data type, as numpy and Zarr call it.
        rows: of the array (axis 0).
        shard_rows: rows of an outer chunk.
        block_rows: rows of an inner chunk.
        shape: shape of one row; both chunk shapes hold whole rows.
        zstd_level: None when the blocks are not compressed.
    """

    name: str
    dtype: str
    rows: int
    shard_rows: int
    block_rows: int
    shape: tuple[int, ...]
    zstd_level: int | None


def group_documents(forms: Iterable[ArrayForm]) -> dict[str, bytes]:
    """The documents by key: the group's, with all arrays inline, and each array's.

    Source: Zarr v3 core specification, "Group metadata" and "Array metadata"; codec sharding_indexed 1.0.
    """
    arrays = {form.name: _array(form) for form in forms}
    group = {
        "zarr_format": _ZARR_FORMAT,
        "node_type": "group",
        "attributes": {},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    nodes = {DOCUMENT: group} | {f"{name}/{DOCUMENT}": array for name, array in arrays.items()}
    return {key: json.dumps(node, indent=2).encode() for key, node in nodes.items()}


def parse_group(documents: Mapping[str, Buffer]) -> list[ArrayForm]:
    """The form of every array, in stored order; the group's document alone is enough.

    Documents of arrays must agree with the consolidated ones, or take their place where there are none.

    Raises:
        FormatError: a document is missing, over 16 MiB, not JSON, or not of this layout.
        UnsupportedVersion: a document is of a Zarr format above 3.
    """
    try:
        return _parse_group(documents)
    except RecursionError as error:
        raise FormatError("metadata document is nested too deeply", key=DOCUMENT) from error


def _parse_group(documents: Mapping[str, Buffer]) -> list[ArrayForm]:
    group = _load(documents, DOCUMENT)
    _check_node(group, DOCUMENT, "group")
    suffix = f"/{DOCUMENT}"
    beside = {key.removesuffix(suffix): _load(documents, key) for key in documents if key.endswith(suffix)}
    consolidated = group.get("consolidated_metadata") or {"kind": "inline", "metadata": beside}
    arrays = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    if not isinstance(arrays, dict) or consolidated.get("kind") != "inline":
        raise FormatError("consolidated_metadata is not of kind 'inline'", key=DOCUMENT)
    if not 0 < len(arrays) <= MAX_ARRAYS:
        raise FormatError(f"the group has {len(arrays)} arrays, not 1 to {MAX_ARRAYS}", key=DOCUMENT)
    forms = {name: _parse_array(name, array) for name, array in arrays.items()}
    for name, array in beside.items():
        if _parse_array(name, array) != forms.get(name):
            raise FormatError("the array differs from the group's consolidated metadata", key=name + suffix)
    return list(forms.values())


def _array(form: ArrayForm) -> Json:
    plain = {"name": "bytes"} if form.dtype in _SINGLE_BYTE else _LITTLE
    zstd = {"name": "zstd", "configuration": {"level": form.zstd_level, "checksum": False}}
    codecs = [plain, _CRC] if form.zstd_level is None else [plain, zstd, _CRC]
    sharding = {
        "chunk_shape": [form.block_rows, *form.shape],
        "codecs": codecs,
        "index_codecs": [_LITTLE, _CRC],
        "index_location": "end",
    }
    return {
        "zarr_format": _ZARR_FORMAT,
        "node_type": "array",
        "shape": [form.rows, *form.shape],
        "data_type": form.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [form.shard_rows, *form.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_value(form.dtype),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["row", *(f"{form.name}_{axis}" for axis in range(1, len(form.shape) + 1))],
        "storage_transformers": [],
    }


def _fill_value(dtype: str) -> object:
    if dtype == "bool":
        return False
    if dtype.startswith("complex"):
        return [0.0, 0.0]
    return 0.0 if dtype.startswith("float") else 0


def _load(documents: Mapping[str, Buffer], key: str) -> Any:
    data = documents.get(key)
    if data is None:
        raise FormatError("metadata document is missing", key=key)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"metadata document has {len(data)} bytes, over {MAX_DOCUMENT_BYTES}", key=key)
    try:
        return json.loads(bytes(data))
    except ValueError as error:
        raise FormatError(f"metadata document is not JSON: {error}", key=key) from error


def _check_node(node: Any, key: str, node_type: str) -> None:
    if not isinstance(node, dict):
        raise FormatError(f"the document of the {node_type} is not a JSON object", key=key)
    version = node.get("zarr_format")
    if type(version) is int and version > _ZARR_FORMAT:
        raise UnsupportedVersion(
            f"Zarr format {version} is newer than {_ZARR_FORMAT}", key=key, hint="Upgrade corpus-tiering"
        )
    if version != _ZARR_FORMAT or node.get("node_type") != node_type:
        raise FormatError(f"the document is not that of a Zarr v3 {node_type}", key=key)


def _parse_array(name: str, array: object) -> ArrayForm:
    key = f"{name}/{DOCUMENT}"
    _check_node(array, key, "array")
    try:
        form = _form(name, array)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"the array is not one of this layout: {error!r}", key=key) from error
    _check_same(array, _array(form), key)
    return form


def _form(name: str, array: Any) -> ArrayForm:
    sharding = array["codecs"][0]["configuration"]
    levels = [codec["configuration"]["level"] for codec in sharding["codecs"] if codec["name"] == "zstd"]
    rows, *shape = map(_whole, array["shape"])
    return ArrayForm(
        name=name,
        dtype=_dtype(array["data_type"]),
        rows=rows,
        shard_rows=_whole(array["chunk_grid"]["configuration"]["chunk_shape"][0]),
        block_rows=_whole(sharding["chunk_shape"][0]),
        shape=tuple(shape),
        zstd_level=_whole(levels[0]) if levels else None,
    )


def _whole(value: object) -> int:
    if type(value) is int:
        return value
    raise TypeError(f"{str(value)[:80]!r} is not a whole number")


def _dtype(value: object) -> str:
    if isinstance(value, str) and value in DTYPES:
        return value
    raise TypeError(f"{str(value)[:80]!r} is not a data type that is stored")


def _check_same(found: Any, written: Json, key: str) -> None:
    """Refuse a document that means something else than `written`; extensions may ask to be ignored."""
    for name in written.keys() - _FREE:
        if found.get(name, [] if name == "storage_transformers" else None) != written[name]:
            raise FormatError(f"{name} is not one of this layout: {str(found.get(name))[:200]}", key=key)
    for name in found.keys() - written.keys():
        extension = found[name]
        if not (isinstance(extension, dict) and extension.get("must_understand") is False):
            raise FormatError(f"{name[:80]!r} is not known", key=key)
