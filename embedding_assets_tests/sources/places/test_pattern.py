from pathlib import Path

import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.places import Item, PassedOver, Unknown
from embedding_assets.sources.places.pattern import Pattern


def listed(path: Path) -> list[Item | Unknown | RejectedDocument]:
    return [one for one in Pattern(path).list_items("tickets") if not isinstance(one, PassedOver)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("*.jsonl*", ["a.jsonl", "b.jsonl", "c.jsonl.gz"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "sub/d.jsonl"]),
        ("s*/d.jsonl", ["sub/d.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_path_is_one_file_or_a_pattern_also_in_a_folder_whose_name_looks_like_one(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    folder = tmp_path / "[2024] *all*"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz", "sub/d.jsonl", "sub/e.txt"):
        (folder / name).write_bytes(b"text")
    assert [item.name for item in listed(folder / pattern) if isinstance(item, Item)] == expected


def test_a_single_file_may_be_a_link_since_the_settings_name_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "real.jsonl").write_bytes(b"text")
    (tmp_path / "data" / "t.jsonl").symlink_to("../real.jsonl")
    [item] = listed(tmp_path / "data" / "t.jsonl")
    assert isinstance(item, Item)
    with item.open() as stream:
        assert stream.read() == b"text"


def test_a_link_that_a_pattern_finds_must_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "real.jsonl").write_bytes(b"text")
    (tmp_path / "data" / "t.jsonl").symlink_to("../real.jsonl")
    [rejected] = listed(tmp_path / "data" / "*.jsonl")
    assert isinstance(rejected, RejectedDocument)
    assert rejected.error_class == "outside-link"


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/t.jsonl", "*.jsonl", "folder", "missing/*.jsonl"])
def test_a_path_that_is_not_there_is_an_error_and_not_an_empty_source(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PermanentError) as refused:
        listed(tmp_path / path)
    message = str(refused.value)
    assert "tickets" in message
    assert str(tmp_path) in message
    assert "Cure:" in message
