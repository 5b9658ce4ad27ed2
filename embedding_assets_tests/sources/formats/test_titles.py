import pytest

from embedding_assets.sources.formats.titles import MAX_TITLE, title_of

CASES = [
    ('+++\ntitle = "Real"\ndraft = false\n+++\n\n# Heading\n\ntext\n', "Real"),
    ('+++\ndraft = false\n[params]\ntitle = "no"\n+++\n\n# Heading\n', "Heading"),
    (":::note\nMind the gap.\n:::\n\n# Heading\n\ntext\n", "Heading"),
    (":::note\n# In\n:::\n\n# Heading\n\ntext\n", "Heading"),
    (":::note\n# In\n:::\n", "In"),
    ("An opening paragraph.\n***\n# Heading\n\ntext\n", "Heading"),
    ("- item one\n- item two\n---\n# Heading\n\ntext\n", "Heading"),
    ("> a quotation\n---\n# Heading\n", "Heading"),
    ("<!--\n# Licence\n-->\n\n# Heading\n\ntext\n", "Heading"),
    ("- item\nlazy\n---\n# Heading", "Heading"),
    ("> q\nlazy\n===\n# Heading", "Heading"),
    ("1. one\n---\n# Heading", "Heading"),
    ("- item\n\n  para\n  ---\n\n# Heading", "Heading"),
    ("- item\n  ```\n# no\n  ```\n# Heading", "Heading"),
    ("````\n```\n# no\n````\n# Heading", "Heading"),
    ("~~~\n# no\n```\n~~~\n# Heading", "Heading"),
    ("# C#", "C#"),
    ("# C# #", "C#"),
    ("# A ##", "A"),
    ("## #\n# Heading", "Heading"),
    ("#\n# Heading", "Heading"),
    ("####### no\n# Heading", "Heading"),
    ("#no\n# Heading", "Heading"),
    ("    # code\n\n# Heading", "Heading"),
    ("\t# code\n\n# Heading", "Heading"),
    ("Two\nlines\n---", "Two lines"),
    ("___\n---\n# Heading", "Heading"),
    ("text\n\n---\n# Heading", "Heading"),
    ("# A\n---\n", "A"),
    ("***\n---\n\n# Heading", "Heading"),
    ("| a |\n---\n# Heading", "Heading"),
    ("---\ntitle: My page\n---\n# H", "My page"),
    ("---\ntitle: 'It''s'\n---\n# H", "It's"),
    ('---\ntitle: "A \\"q\\"" \n---\n# H', 'A "q"'),
    ("---\ntitle: A # c\n...\n# H", "A"),
    ("---\nlayout: x\nnested:\n  title: no\n---\n# H", "H"),
    ("---\ntitle: >-\n  Folded\n  more\n---\n# H", "Folded"),
    ("---\ntitle:\n---\n# H", "H"),
    ("---\n# Heading", "Heading"),
    ("* * *\nTitle\n===", "Title"),
    ("{/*\n# no\n*/}\n# Heading", "Heading"),
    ("``` a ``` b\n# Heading", "Heading"),
    ("- a\n\ntext\n---", "text"),
    ("Setext\n==", "Setext"),
    ("<div>\nx\n</div>\n\n# Heading", "Heading"),
    ("+++\n# no end\n", "no end"),
    ('---\n"title": x\n---', "x"),
    ("+++\ntitle = '''\nMulti'''\n+++", "Multi"),
    ("- a\n- b\n\n# Heading", "Heading"),
    ("- a\n# Heading", "Heading"),
    ("* \n# Heading", "Heading"),
    ('---\ntitle: "\n---\n# H', "H"),
    ("---\ntitle: 'x\n---\n# H", "x"),
    ("- a\n***\nTitle\n===", "Title"),
    ("text", None),
    ("", None),
    ("# " + "x" * 1_000, "x" * MAX_TITLE),
]


@pytest.mark.parametrize(("text", "title"), CASES, ids=[text[:40] for text, _ in CASES])
def test_the_title_of_markdown_is_what_its_front_matter_says_or_its_first_heading(text: str, title: str | None) -> None:
    assert title_of(text, markdown=True) == title


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Title\n=====\n", "Title"),
        ("*****\nTitle\n*****\n", "Title"),
        ("A longer title\n---\n", None),
        ("# comment\n\ntext", None),
        ("=====\n=====", None),
    ],
)
def test_the_title_of_another_text_is_its_first_underlined_line(text: str, title: str | None) -> None:
    assert title_of(text, markdown=False) == title
