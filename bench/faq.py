"""Real questions with their authors' answers, to judge searches by: `python -m bench.faq FOLDER`.

Two sets, from frequently asked questions that Debian's packages carry (apt-get download; nothing is installed): `faq`
of Perl, Python, Debian and R, and `programs` of zsh, fetchmail, Git and bogofilter. What is chosen on one can be judged
on the other. Each becomes a folder of documents, an answer each without its question, and a file of questions as
`embedding-assets evaluate --queries` takes it. The texts are their authors' and stay out of this project.
"""

import argparse
import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lxml import html

Pair = tuple[str, str]
"""A question, and its answer."""

_CUT: Final = "\ue000"  # of private use: in no page

_ASKS: Final = re.compile(r"\?|^(?:how|what|why|where|when|which|who|can|is|are|do|does|should|i)\b", re.IGNORECASE)

_SHORTEST: Final = 40
"""Characters of an answer that says something: shorter ones point elsewhere."""


def pod(file: Path) -> Iterator[Pair]:
    """A page of Perl's: a question is a heading of the second order."""
    text = re.sub(r"X<[^<>]*>", "", file.read_text("utf-8", "replace"))  # entries of an index
    text = text.replace("E<lt>", "\ue001").replace("E<gt>", "\ue002")
    text = re.sub(r"[A-Z]<(?:<+ )?([^<>]*?)(?: >+)?>", r"\1", text).replace("\ue001", "<").replace("\ue002", ">")
    for piece in re.split(r"^=head2 ", text, flags=re.MULTILINE)[1:]:
        question, _, answer = piece.partition("\n\n")
        yield question, re.sub(r"^=\w.*$", "", answer.partition("\n=head1 ")[0], flags=re.MULTILINE)


def page(*headings: str) -> Callable[[Path], Iterator[Pair]]:
    """A page whose questions are these elements; an answer ends with the next heading of any kind."""

    def read(file: Path) -> Iterator[Pair]:
        body = html.fromstring(file.read_bytes())
        for element in body.xpath("//script | //style | //a[@class='headerlink'] | //nav"):
            element.drop_tree()
        for element in body.iter("h1", "h2", "h3", "h4", *headings):
            question = element.text_content() if element.tag in headings else ""
            for inside in list(element):
                element.remove(inside)
            element.text = f"{_CUT}{question}{_CUT}"
        cut = body.text_content().split(_CUT)
        yield from zip(cut[1::2], cut[2::2], strict=True)

    return read


def numbered(file: Path) -> Iterator[Pair]:
    """A page of text whose questions are numbered as `2.3: …`."""
    text = gzip.decompress(file.read_bytes()).decode("latin-1")
    for piece in re.split(r"^\d+\.\d+: ", text, flags=re.MULTILINE)[1:]:
        question, _, answer = piece.partition("\n\n")
        yield question, re.split(r"^Chapter ", answer, flags=re.MULTILINE)[0]


Page = tuple[str, str, Callable[[Path], Iterator[Pair]]]
"""A package, its pages, and how they are read."""

SETS: Final[dict[str, tuple[Page, ...]]] = {
    "faq": (
        ("perl-doc", "usr/share/perl/*/pod/perlfaq[1-9].pod", pod),
        ("python3.11-doc", "usr/share/doc/python3.11/html/faq/*.html", page("h3", "h2")),
        ("debian-faq", "usr/share/doc/debian/FAQ/*.en.html", page("h2", "h3")),
        ("r-doc-html", "usr/share/R/doc/manual/R-FAQ.html", page("h3", "h4")),
    ),
    "programs": (
        ("zsh-common", "usr/share/doc/zsh-common/FAQ.gz", numbered),
        ("fetchmail", "usr/share/doc/fetchmail/fetchmail-FAQ.html", page("h2")),
        ("git-doc", "usr/share/doc/git-doc/gitfaq.html", page("dt")),
        ("bogofilter-common", "usr/share/doc/bogofilter-common/bogofilter-faq.html", page("h2")),
    ),
}


def pairs(name: str, packages: Path) -> Iterator[tuple[str, str, str]]:
    """Every (package, question, answer) of a set; the packages are fetched into a folder where it lacks them."""
    for package, pattern, read in SETS[name]:
        root = packages / package
        if not root.is_dir():
            subprocess.run(["apt-get", "download", "-qq", package], cwd=packages, check=True)  # noqa: S603, S607
            (file,) = packages.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", file, root], check=True)  # noqa: S603, S607
        for file in sorted(root.glob(pattern)):
            for raw, answer in read(file):
                question = re.sub(r"^(?:[A-Z]?\d+(?:\.\d+)*\.?:?|[A-Z]\d+\.)\s+", "", " ".join(raw.split()).strip("¶ "))
                if _ASKS.search(question) and len(answer.strip()) >= _SHORTEST:
                    yield package, question, re.sub(r"\n{3,}", "\n\n", answer.strip()).replace(question, "")


def write(folder: Path, name: str, packages: Path) -> int:
    """Write a set's documents and questions; how many there are."""
    documents = folder / name
    documents.mkdir(parents=True, exist_ok=True)
    questions = list[str]()
    for number, (package, question, answer) in enumerate(pairs(name, packages)):
        document = f"{package}-{number:03}.txt"
        (documents / document).write_text(answer, "utf-8")
        questions.append(json.dumps({"query": question, "relevant": {document: 1}}))
    (folder / f"{name}.jsonl").write_text("\n".join(questions) + "\n", "utf-8")
    return len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the sets go")
    parser.add_argument("--packages", type=Path, help="where the packages lie, or are fetched to, and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        packages = arguments.packages or Path(scratch)
        for name in SETS:
            print(f"{name}: {write(arguments.folder, name, packages)} questions")


if __name__ == "__main__":
    main()
