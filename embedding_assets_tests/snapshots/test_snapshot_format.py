"""The snapshot format is what docs/format.md says: its tables, its example and its code are held against ours."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.snapshots import keys, schemas
from embedding_assets.snapshots.keys import document_bucket, part_key, root_of, shard_bits, shard_of
from embedding_assets.snapshots.layers import write_layer
from embedding_assets.snapshots.rejections import RejectedDocument, RejectedText
from embedding_assets.snapshots.snapshot import Layer, Part, Snapshot, root_of_parts, sorted_parts
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.support.shards import SOURCE, commit, write

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()

hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
numbers = st.integers(0, 10**9)
assets = st.from_regex(r"[a-z0-9_]+", fullmatch=True)
layers = st.builds(Layer, asset=assets, shard=numbers, key=hashes, rows=numbers, bytes=numbers, sha256=hashes)
parts = layers.map(Part.alone)


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def first_columns(after: str) -> list[tuple[str, str]]:
    """The first two columns of the page's first table after some words."""
    table = PAGE[PAGE.index(after) :]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", table[table.index("|---|") :].split("\n\n")[0], re.MULTILINE)
    return [(name, said.strip()) for name, said in rows]


def columns(schema: pa.Schema) -> list[tuple[str, str]]:
    return [(field.name, str(field.type)) for field in schema]


def test_the_page_lists_the_columns_of_every_part() -> None:
    assert first_columns("### `raw_docs`") == columns(schemas.DOCUMENTS)
    assert first_columns("### `chunks`") == columns(schemas.CHUNKS)
    ours = [(name, kind.replace("[64]", "[4 × d]")) for name, kind in columns(schemas.vectors(16))]
    assert first_columns("### `embeddings_v1`") == ours


def test_the_page_lists_the_fields_of_snapshots_parts_and_layers() -> None:
    assert [name for name, _ in first_columns("## Snapshots")] == list(Snapshot.model_fields)
    assert [name for name, _ in first_columns("A part in it:")] == list(Part.model_fields)
    assert [name for name, _ in first_columns("A layer in it:")] == list(Layer.model_fields)


def test_the_page_lists_the_fields_of_rejections() -> None:
    of_documents, of_texts = (first_columns(f"A rejection in it, of a {kind}") for kind in ("document", "text"))
    assert [name for name, _ in of_documents] == list(RejectedDocument.model_fields)
    assert [name for name, _ in of_texts] == list(RejectedText.model_fields)


def test_the_pages_example_is_a_snapshot() -> None:
    example = Snapshot.model_validate_json(block("json"))

    assert example.root_holds
    assert json.loads(example.model_dump_json()) == json.loads(block("json"))


def test_the_pages_code_reads_a_store(folder_store: Store, tmp_path: Path) -> None:
    rows = pa.table(
        {
            "chunk_id": pa.array([b"a" * 16, b"b" * 16, b"c" * 16], schemas.CHUNK_ID),
            "text_hash": pa.array([b"a" * 32, b"b" * 32, b"c" * 32], schemas.HASH),
            "embedding": pa.array(
                [np.array([0, 1], np.float32).tobytes(), None, np.array([1, 0], np.float32).tobytes()], pa.binary(8)
            ),
            "vector_hash": pa.array([b"d" * 32, None, b"e" * 32], schemas.HASH),
        },
        schema=schemas.vectors(2),
    )
    committed = None
    for number in range(11):
        layer = write_layer(
            folder_store, rows, asset="embeddings_v1", source=SOURCE, shard=0, key=part_key("e", "1", [str(number)])
        )
        committed = commit(folder_store, [Part.alone(layer)], committed, asset="embeddings_v1")
    page: dict[str, Callable[..., Any]] = {}
    exec(block("python"), page)

    snapshot = page["head"](tmp_path / "store", "embeddings_v1", SOURCE)
    (table,) = page["rows"](tmp_path / "store", snapshot, "embeddings_v1")

    assert snapshot["number"] == 11
    assert table.equals(rows)
    np.testing.assert_array_equal(page["vectors"](table), [[0, 1], [1, 0]])

    # The third row changed since, the second is gone, and the next delta leaves all as it is.
    base = committed.parts[0] if committed else None
    assert base is not None
    layers = list(base.layers)
    other = pa.array([b"f" * 32] * 3, schemas.HASH)
    changed_rows = rows.set_column(1, rows.schema.field("text_hash"), other)
    for changed, gone in (
        (changed_rows.slice(2), rows["chunk_id"].slice(1, 1)),
        (rows.slice(0, 0), rows["chunk_id"].slice(0, 0)),
    ):
        key = part_key("e", "1", [layers[-1].key])
        layers.append(
            write_layer(
                folder_store,
                changed.set_column(1, "text_hash", pa.array([b"f" * 32] * len(changed), schemas.HASH)).cast(
                    rows.schema
                ),
                asset="embeddings_v1",
                source=SOURCE,
                shard=0,
                key=key,
                gone=gone.combine_chunks(),
            )
        )
    commit(folder_store, [base.model_copy(update={"layers": tuple(layers)})], committed, asset="embeddings_v1")
    (table,) = page["rows"](
        tmp_path / "store", page["head"](tmp_path / "store", "embeddings_v1", SOURCE), "embeddings_v1"
    )
    assert table.column("chunk_id").to_pylist() == [b"a" * 16, b"c" * 16]
    assert table.column("text_hash").to_pylist() == [b"a" * 32, b"f" * 32]


def test_a_snapshot_of_format_2_is_read_as_one_of_today(folder_store: Store) -> None:
    """A part was one file, which is a base."""
    today = commit(folder_store, [write(folder_store, {"a": "1"}), write(folder_store, {"b": "1"}, shard=1)])
    files = [layer.model_dump(mode="json", exclude={"gone"}) for layer in today.layers]
    written = today.model_dump(mode="json") | {"format": 2, "parts": files}

    assert Snapshot.model_validate_json(json.dumps(written)) == today


def test_others_find_a_part_in_a_bucket_where_the_page_says(bucket: str) -> None:
    part = write(open_store(f"s3://{bucket}/pre fix"), {"é": "1"}, asset="chunks")

    path = f"pre fix/parts/chunks/{SOURCE}/{part.key}.parquet"
    data = boto3.client("s3").get_object(Bucket=bucket, Key=path)["Body"].read()

    assert pq.read_table(pa.BufferReader(data)).to_pylist() == [{"name": "é", "content": "1"}]
    assert hashlib.sha256(data).hexdigest() == part.layers[0].sha256


def test_a_part_key_is_the_hash_of_what_it_was_derived_from() -> None:
    derivation = '["chunks","1",["aa","\\u00e9"],["b","c"]]'

    assert part_key("chunks", "1", ["aa", "é"], ["c", "b"]) == hashlib.sha256(derivation.encode()).hexdigest()


@given(st.lists(st.tuples(st.text(), st.text(), st.lists(st.text()), st.sets(st.text())), min_size=2, max_size=2))
def test_other_derivations_have_other_keys(derivations: list[tuple[str, str, list[str], set[str]]]) -> None:
    one, other = (part_key(stage, version, inputs, list(dead)) for stage, version, inputs, dead in derivations)

    assert (one == other) == (derivations[0] == derivations[1])


@given(st.lists(parts))
def test_a_root_depends_on_nothing_but_part_keys(anyhow: list[Part]) -> None:
    part_keys = [part.key for part in anyhow]

    assert (
        root_of_parts(tuple(anyhow)) == root_of(part_keys) == hashlib.sha256("\n".join(part_keys).encode()).hexdigest()
    )


@given(st.lists(st.tuples(st.sampled_from(["chunks", "embeddings_v1"]), st.integers(0, 9)), unique=True), st.randoms())
def test_parts_are_listed_in_one_order_whatever_order_they_were_made_in(
    made: list[tuple[str, int]], random: Any
) -> None:
    some = [Part.alone(Layer(asset=a, shard=s, key=f"{s:064x}", rows=1, bytes=1, sha256="0" * 64)) for a, s in made]

    listed = sorted_parts(random.sample(some, len(some)))

    assert listed == sorted_parts(some)
    assert [(part.asset, part.shard) for part in listed] == sorted(made)


@pytest.mark.parametrize(
    ("document_id", "bits", "shard"),
    # sha256("a") begins with ca 97 81 12, that of "é" with 4a 99 55 7e
    [("a", 0, 0), ("a", 1, 1), ("a", 8, 0xCA), ("a", 32, 0xCA978112), ("é", 8, 0x4A), ("é", 4, 0x4)],
)
def test_a_documents_shard_is_the_first_bits_of_the_hash_of_its_id(document_id: str, bits: int, shard: int) -> None:
    assert shard_of(document_bucket(document_id), bits) == shard


@given(st.integers(0, 10**13))
def test_shards_hold_a_bounded_share_of_any_source(text_bytes: int) -> None:
    share = text_bytes / 2 ** shard_bits(text_bytes)

    assert share <= keys.SHARD_BYTES
    assert shard_bits(text_bytes) == 0 or share > keys.SHARD_BYTES / 2
