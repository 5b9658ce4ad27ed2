import json
import os
import re
from pathlib import Path

from embedding_assets.demo.input import PACKAGES_BYTES, write_demo_input
from embedding_assets.settings.default import default_settings
from embedding_assets.sources.documents import Document
from embedding_assets.sources.places import Item
from embedding_assets.sources.reader import open_reader


def state(home: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(home)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def test_both_sources_of_the_demo_are_read_without_a_rejection(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    write_demo_input(home)
    for name, source in default_settings(home).sources.items():
        reader = open_reader(name, source)
        documents = []
        for item in reader.list_items():
            assert isinstance(item, Item)
            documents += list(reader.read_item(item))
        assert all(isinstance(document, Document) for document in documents)
        assert len(documents) > 50
        assert len({document.document_id for document in documents}) == len(documents)


def test_reference_topics_have_titles(tmp_path: Path) -> None:
    write_demo_input(tmp_path)
    reader = open_reader("reference", default_settings(tmp_path).sources["reference"])
    items = {item.name: item for item in reader.list_items() if isinstance(item, Item)}
    [found] = reader.read_item(items["lambda.rst"])
    assert isinstance(found, Document)
    assert json.loads(found.metadata_json) == {"path": "lambda.rst", "title": "Lambdas"}


def test_packages_are_sorted_once_each_and_within_their_budget(tmp_path: Path) -> None:
    write_demo_input(tmp_path)
    text = (tmp_path / "input" / "packages.jsonl").read_text()
    packages = [json.loads(line) for line in text.splitlines()]
    names = [package["name"] for package in packages]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert len(text) <= PACKAGES_BYTES
    assert all({"name", "version", "description"} <= package.keys() for package in packages)


def test_writing_again_leaves_every_file_alone(tmp_path: Path) -> None:
    write_demo_input(tmp_path)
    before = state(tmp_path)
    write_demo_input(tmp_path)
    assert state(tmp_path) == before


def test_an_edited_and_a_deleted_file_are_written_anew_and_the_others_left_alone(tmp_path: Path) -> None:
    write_demo_input(tmp_path)
    before = state(tmp_path)
    edited, deleted = "input/reference/lambda.rst", "input/reference/for.rst"
    (tmp_path / edited).write_text("edited")
    os.unlink(tmp_path / deleted)
    write_demo_input(tmp_path)
    after = state(tmp_path)
    assert {name for name in before if after[name][0] != before[name][0]} == {edited, deleted}
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
