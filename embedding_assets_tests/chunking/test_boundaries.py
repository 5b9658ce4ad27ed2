"""Chunks are cut where a reader would cut them."""

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedding_assets.chunking.spans import split
from embedding_assets.chunking.tokens import encode
from embedding_assets_tests.chunking.texts import markdown, unhurried


def chunks(text: str, max_tokens: int, overlap: int = 0) -> list[str]:
    return [text[start:end] for start, end, _ in split(text, max_tokens=max_tokens, overlap=overlap)]


LONG = "The quick brown fox jumps over the lazy dog and runs away from it"  # 14 tokens

MARKDOWN = """\
# Backups

Every night at two the database is dumped to the store. A dump is kept for thirty days.

## Restore

Stop the workers first. Then load the newest dump:

```bash
systemctl stop workers

# --clean drops what is there
pg_restore --clean --dbname app latest.dump
systemctl start workers
```

Check the row counts before you let users in.

## Contacts

- On call: the pager knows.
- Database: ask Ines.
"""

RESTRUCTURED = """\
=======
Backups
=======

Every night at two the database is dumped to the store.

.. note:: A dump is kept for thirty days.

Restore
-------

Stop the workers first. Then load the newest dump::

    systemctl stop workers

    pg_restore --clean --dbname app latest.dump

Check the row counts before you let users in. Tell the channel when you are done.
"""


def test_markdown_sections_stay_together() -> None:
    first, restore, contacts = chunks(MARKDOWN, 64)
    assert first.startswith("# Backups\n")
    assert first.endswith("thirty days.")
    assert restore.startswith("## Restore\n")
    assert restore.endswith("let users in.")
    assert contacts == "## Contacts\n\n- On call: the pager knows.\n- Database: ask Ines."


def test_restructuredtext_sections_stay_together() -> None:
    first, restore = chunks(RESTRUCTURED, 64)
    assert first.startswith("=======\nBackups\n=======\n")
    assert restore.startswith("Restore\n-------\n")


def test_a_code_block_stays_whole_and_with_its_introduction() -> None:
    _, restore, rest = chunks(MARKDOWN, 50)
    assert restore.startswith("## Restore")
    assert restore.endswith("systemctl start workers\n```")
    assert rest.startswith("Check the row counts")
    _, restore, rest = chunks(RESTRUCTURED, 40)
    assert restore.endswith("latest.dump")
    assert rest.startswith("Check the row counts")


def test_a_comment_in_a_code_block_is_no_heading() -> None:
    text = "\n".join(["```", *(f"# comment {i}\ncall_{i}()\n" for i in range(20)), f"{LONG}.", "```"])
    plain = text.replace("# ", "% ")
    for limit in range(32, 64):  # too small for the block, so that it is cut
        assert [len(chunk) for chunk in chunks(text, limit)] == [len(chunk) for chunk in chunks(plain, limit)]


A_BLOCK_OF_32 = """\
```python
index = call('index')

index = call('index')

Postgres = call('Postgres')

store, = call('store,')
```"""


FENCED = re.compile(r"^```python\n.*?^```$", re.MULTILINE | re.DOTALL)


# 32 tokens by itself, 33 where it stands: the blank line after it moves a token's edge.
@example(f"## A heading\n\nAnd a line.\n\n{A_BLOCK_OF_32}\n\nA last line.", 32, 0)
@unhurried
@given(markdown, st.sampled_from([32, 64, 128]), st.integers(0, 15))
def test_every_code_block_that_fits_is_whole_in_a_chunk(text: str, max_tokens: int, overlap: int) -> None:
    spans = split(text, max_tokens=max_tokens, overlap=overlap)
    for block in FENCED.finditer(text):
        if len(encode(block[0])) <= max_tokens:
            assert any(span.start <= block.start() and block.end() <= span.end for span in spans)
            # Nor is a part of it repeated by an overlap.
            assert not any(block.start() < span.start < block.end() for span in spans)


@pytest.mark.parametrize("max_tokens", range(22, 64))
def test_a_code_block_stays_whole_behind_a_word_that_grows_by_being_cut_off(max_tokens: int) -> None:
    """ " Venezuelan" is one token; at the start of a chunk, without its space, it is four."""
    code = "```\n" + "call()\n\n" * 8 + "```"
    text = f"{LONG}. {LONG}. Venezuelan oil:\n\n{code}\n\n{LONG}. {LONG}. {LONG}."
    assert any(code in chunk for chunk in chunks(text, max_tokens))


@unhurried
@given(markdown, st.sampled_from([64, 128]), st.integers(0, 31))
def test_no_chunk_ends_with_a_heading_unless_code_that_just_fits_follows(
    text: str, max_tokens: int, overlap: int
) -> None:
    for start, end, _ in split(text, max_tokens=max_tokens, overlap=overlap):
        last_line = text[start:end].rsplit("\n", 1)[-1]
        if last_line.startswith("## "):
            assert text[end:].lstrip().startswith("```")


@pytest.mark.parametrize("words", range(65, 200, 3))
def test_the_last_chunk_is_not_nearly_empty(words: int) -> None:
    assert split("word " * words, max_tokens=64, overlap=0)[-1].tokens >= 16
    assert split("A word. " * words, max_tokens=64, overlap=0)[-1].tokens >= 16


def test_an_indented_block_that_does_not_fit_is_cut_between_its_lines() -> None:
    text = "Run:\n\n" + "\n".join(f"    step_{i}(with_some={i}, arguments={i})" for i in range(40))
    found = chunks(text, 64)
    assert len(found) > 5
    assert all(chunk.startswith(("Run:", "step_")) and chunk.endswith(("Run:", ")")) for chunk in found)


def test_a_paragraph_indented_under_a_list_item_is_no_code_and_may_be_cut_at_a_sentence() -> None:
    item = "- An item.\n\n    " + "Its second paragraph goes on. " * 12
    text = "A first paragraph. " * 9 + "\n\n" + item
    assert [chunk.endswith("goes on.") for chunk in chunks(text, 64)] == [False, True, True]


@pytest.mark.parametrize(
    ("boundary", "next_begins"),
    [
        ("\n\n# Heading\n\n", "# Heading"),
        ("\n\nHeading\n-------\n\n", "Heading\n-------"),
        (".\n\n", LONG),
        (". ", LONG),
        ("。", LONG),
        (".) ", LONG),
        ('."** ', LONG),
        ("\n", LONG),
        ("\n- ", f"- {LONG}"),
        ("\n12. ", f"12. {LONG}"),
        ("\n9) ", f"9) {LONG}"),
    ],
    ids=ascii,
)
def test_each_kind_of_boundary_beats_mere_words(boundary: str, next_begins: str) -> None:
    text = LONG + boundary + LONG
    first, second = chunks(text, 26)
    assert first.startswith(LONG)
    assert second.startswith(next_begins)


BODY = f"{LONG}. {LONG}.\n\n{LONG}. {LONG}."


@pytest.mark.parametrize(
    "heading",
    ["# Title", "  ###### Title #", "Title\n=====", "Title here\n---", "+++++\nTitle\n+++++", "Title\r\n~~~~~\r"],
    ids=ascii,
)
def test_a_heading_ends_a_chunk_that_has_room_for_more(heading: str) -> None:
    first, second = chunks(f"{LONG}\n\n{heading}\n\n{BODY}", 50)[:2]
    assert first == LONG
    assert second.startswith(heading.strip())


@pytest.mark.parametrize(
    "line",
    ["#hashtag", "####", "Title\n~~", "Loading\n...", "Loading it\n....", "---", "A line\nTitle\n====="],
    ids=ascii,
)
def test_what_only_looks_like_a_heading_does_not(line: str) -> None:
    assert chunks(f"{LONG}\n\n{line}\n\n{BODY}", 50)[0].startswith(f"{LONG}\n\n{line}\n\n{LONG}")


def test_a_heading_directly_under_a_heading_stays_with_it() -> None:
    assert chunks(f"{LONG}\n\n# Part\n\n## Chapter\n\n{BODY}", 50)[1].startswith("# Part\n\n## Chapter\n\nThe")


def test_a_comment_in_an_indented_block_is_no_heading() -> None:
    text = "Run this::\n\n" + "\n".join(f"  # comment {i}\n  call_{i}()\n  call_{i}()" for i in range(20))
    plain = text.replace("# ", "% ")
    for limit in range(32, 64):
        assert [len(chunk) for chunk in chunks(text, limit)] == [len(chunk) for chunk in chunks(plain, limit)]


@pytest.mark.parametrize(
    "block",
    [
        "````md\n```py\ncall()\n```\n\ncall()\n\n````",  # a shorter fence inside
        "```\n```py\n\ncall()\n\ncall()\n```",  # a fence with a language closes nothing
        "~~~\n```\n\ncall()\n\ncall()\n~~~",
        "```py title=`x`\n```\n\ncall()\n\ncall()\n```",  # a backtick after a fence: the line is none
    ],
)
def test_a_fence_is_closed_by_its_like(block: str) -> None:
    last = block[block.rindex("```\n\n") :] if "title" in block else block
    text = f"{LONG}. {LONG}. {LONG}.\n\n{block}\n\n{BODY}"
    assert all(any(last in chunk for chunk in chunks(text, limit)) for limit in range(24, 64))


def test_a_code_block_indented_by_tabs_is_one() -> None:
    block = "\tcall()\n\n\tcall()\n\n\tcall()"
    text = f"{LONG}. {LONG}. Run::\n\n{block}\n\n{BODY}"
    assert all(any(block.strip() in chunk for chunk in chunks(text, limit)) for limit in range(32, 64))


def test_a_list_is_cut_before_an_item_and_not_inside_one() -> None:
    items = "\n".join(f"- Item {i} has a first line. And then\n  it has a second line" for i in range(12))
    assert all(chunk.startswith("- Item") for chunk in chunks(items, 48))


def test_better_boundaries_are_taken_before_later_ones() -> None:
    text = f"{LONG}. {LONG}.\n\n{LONG}. {LONG}. {LONG}.\n{LONG}"
    assert chunks(text, 56)[0] == f"{LONG}. {LONG}."  # the paragraph, though two sentences more would fit
    text = f"{LONG}. {LONG}. {LONG}\n{LONG}. {LONG}"
    assert chunks(text, 50)[0] == f"{LONG}. {LONG}."  # the sentence, though a line more would fit


def test_a_boundary_that_would_leave_a_chunk_nearly_empty_is_passed_over() -> None:
    text = f"Short.\n\n{LONG}, {LONG}, {LONG}, {LONG}, {LONG}"
    assert chunks(text, 50)[0].startswith("Short.\n\nThe quick")


@pytest.mark.parametrize("abbreviation", ["e.g. Postgres", "i.e. the", "J. Smith", "U.S. Army", "etc. and", "v. 5"])
def test_an_abbreviation_does_not_end_a_sentence(abbreviation: str) -> None:
    text = f"{LONG}. Tom saw {abbreviation} {LONG}"
    assert chunks(text, 24)[0] == f"{LONG}."


def test_a_term_stays_with_its_indented_definition() -> None:
    body = "Called when the object is printed by someone who wants to read it well."
    text = "\n\n".join(f"object.method_{i}(self)\n\n   {body}" for i in range(12))
    for chunk in chunks(text, 64):
        assert chunk.startswith("object.method_")
        assert chunk.endswith(body)


def test_an_overlap_begins_with_a_sentence_if_there_is_one() -> None:
    text = "One two three four five six. Seven eight nine ten eleven. " * 20
    found = chunks(text, 40, overlap=10)
    assert all(chunk.startswith(("One", "Seven")) for chunk in found)
    assert all(before.endswith(after.split(".")[0] + ".") for before, after in itertools.pairwise(found))


def test_an_overlap_begins_with_a_word_where_there_is_no_sentence() -> None:
    found = chunks("alpha beta gamma delta " * 100, 40, overlap=10)
    for before, after in itertools.pairwise(found[:-1]):
        assert before.endswith(" ".join(after.split()[:10]))


def test_an_overlap_is_at_most_half_of_a_short_chunk() -> None:
    text = f"{LONG}. {LONG}. {LONG}.\n\n" + f"{LONG}, " * 12
    first, second = chunks(text, 80, overlap=39)[:2]
    assert first == f"{LONG}. {LONG}. {LONG}."
    assert second.startswith(f"{LONG}.\n\n")


def test_the_last_chunk_gives_up_its_overlap_to_hold_the_rest() -> None:
    assert chunks("word " * 78, 40, overlap=10)[-1] == ("word " * 38).strip()


def test_nothing_overlaps_across_a_heading() -> None:
    found = chunks(MARKDOWN, 64, overlap=16)
    assert [chunk.split("\n")[0] for chunk in found] == ["# Backups", "## Restore", "## Contacts"]


def test_an_overlap_never_costs_a_code_block_its_place() -> None:
    code = "```\n" + "\n".join(f"call_{i}()" for i in range(15)) + "\n```"
    size = len(encode(code))
    text = f"{LONG}. {LONG}. Like this, for one.\n\n{code}\n\n{LONG}. {LONG}."
    assert any(code in chunk and "for one" not in chunk for chunk in chunks(text, size + 3, overlap=10))
    assert any(code in chunk and "for one" in chunk for chunk in chunks(text, size + 12, overlap=10))


def test_an_overlap_never_parts_a_code_block_from_its_introduction() -> None:
    code = "```\n" + "\n".join(f"call_{i}()" for i in range(15)) + "\n```"
    introduced = f"This is how it is called, for one:\n\n{code}"
    text = f"{LONG}. {LONG}. {LONG}. {LONG}. Yes.\n\n{introduced}\n\n{LONG}. {LONG}. {LONG}."
    assert any(introduced in chunk for chunk in chunks(text, len(encode(introduced)) + 2, overlap=10))


def test_an_introduction_whose_code_just_fits_alone_stays_with_what_is_before() -> None:
    code = "```\n" + "\n".join(f"call_{i}()" for i in range(15)) + "\n```"
    found = chunks(f"{LONG}. {LONG}.\n\nThis is how it is called:\n\n{code}", len(encode(code)) + 2)
    assert found == [f"{LONG}. {LONG}.\n\nThis is how it is called:", code]


def test_an_edit_moves_no_cut_in_later_sections() -> None:
    """Only chunks whose text changed are embedded again, so cuts must find back to where they were."""
    sections = [f"## Part {i}\n\n" + f"{LONG}. " * 9 for i in range(12)]
    before = chunks("\n\n".join(sections), 100, overlap=16)
    sections[1] = sections[1].replace("lazy", "very lazy and entirely unsuspecting", 3)
    after = chunks("\n\n".join(sections), 100, overlap=16)
    assert len(set(after) - set(before)) <= 3
