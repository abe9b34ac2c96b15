import gzip
from pathlib import Path

import numpy as np
import pytest

from hivlp.bench.ann.documents import is_title, read_dictionary, read_documents, read_html, split_sentences
from hivlp.errors import DataError

PAGE = """<html><head><title>A kernel of the system</title><script>var words = "never to be read";</script></head>
<body><h2>3.1 Memory <em>management</em> today¶</h2><p>The kernel gives pages
to processes. It takes them back &amp; writes them out.</p><pre>for (page in pages) free them all</pre>
<!-- <p>This comment is not a text.</p> --><ul><li>Pages may be shared</li>
<li>between some processes only</li></ul></body>
"""
DICTIONARY = """Affear \\Af*fear"\\, v. t. [OE. aferen, AS. [=a]f?ran.]
   To frighten; to make {afraid} of something.
   [1913 Webster]

         He that affears you shall not sleep. --Spenser.

<art> The old art of frightening.
"""


def write_dictionary(folder: Path, headwords: list[str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "words.dict.dz").write_bytes(gzip.compress(DICTIONARY.encode() + b"\n\n\x92"))
    (folder / "words.index").write_text("".join(f"{word}\tA\tB\n" for word in headwords))
    return folder / "words.index"


def test_html_gives_blocks_and_headings_but_no_code() -> None:
    text, headings = read_html(PAGE)
    assert headings == ["A kernel of the system", "Memory management today"]
    assert list(split_sentences(text)) == [
        "The kernel gives pages to processes.",
        "It takes them back & writes them out.",
        "Pages may be shared",
        "between some processes only",
    ]


def test_a_dictionary_gives_text_without_marks_and_headwords(tmp_path: Path) -> None:
    text, headwords = read_dictionary(write_dictionary(tmp_path / "dictd", ["Affear", "old art"]))
    assert headwords == ["Affear", "old art"]
    assert list(split_sentences(text)) == [
        "To frighten; to make afraid of something.",
        "He that affears you shall not sleep.",
        "The old art of frightening.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Three words only.",
        "word " * 25,
        "a = b + c of them",
        "Calls close(handle) at the end",
        "The years 1901 1902 1903 1904 1905",
        "void run(int count, char name)",
    ],
)
def test_what_is_too_short_or_long_or_code_is_no_sentence(text: str) -> None:
    assert list(split_sentences(text)) == []


def test_titles_have_a_few_words_of_letters() -> None:
    for text in ("Friar's balsam", "room-temperature iq", "A tale of two big cities"):
        assert is_title(text)
    for text in ("", "balsam", "one two three four five six seven", "getName method", "Version 2.0", "impl<T> Any"):
        assert not is_title(text)


def test_texts_are_distinct_whatever_their_case_and_no_sentence_is_a_title(tmp_path: Path) -> None:
    headwords = ["Old art", "old ART", "The old art of frightening", "He that affears you"]
    write_dictionary(tmp_path / "dictd", headwords)
    for name in "abcdefgh":
        (tmp_path / "pages" / name).mkdir(parents=True)
        verb = "to frighten".replace(name, name.upper())
        (tmp_path / "pages" / name / "page.html").write_text(
            f"<h1>Old Art</h1><p>HE THAT AFFEARS YOU<p>{verb}; to make afraid of something."
        )
    (tmp_path / "pages" / "notes.txt").write_text("This is not a page at all.")
    found = read_documents(tmp_path, {"words": "dictd/words.index", "pages": "pages"})
    titles = found.test + found.validation + found.train
    assert sorted(title.casefold() for title in titles) == sorted({each.casefold() for each in headwords})
    assert sorted(sentence.casefold() for sentence in found.sentences) == [
        "he that affears you shall not sleep.",
        "the old art of frightening.",
        "to frighten; to make afraid of something.",
    ]
    assert "to frigHten; to make afraid of something." in found.sentences  # of the last page, by name


def test_titles_that_start_alike_are_not_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    starts = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(2000)]
    headwords = [f"{start}{ending}" for start in starts for ending in (" rope", "s of rope", "-Maker song")]
    write_dictionary(tmp_path / "dictd", headwords)
    found = read_documents(tmp_path, {"words": "dictd/words.index"})
    parts = (found.test, found.validation, found.train)
    groups = [{title[:5] for title in part} for part in parts]
    assert all(groups) and sum(map(len, groups)) == len(set.union(*groups))
    assert sum(map(len, parts)) == len(set(headwords))
    assert len(found.train) > 0.9 * len(set(headwords))
    assert read_documents(tmp_path, {"words": "dictd/words.index"}) == found


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dictionary(tmp_path / "dictd", [])
    packages = {"dict-words": "dictd/words.index", "one-doc": "doc/one", "two-doc": "doc/two"}
    (tmp_path / "doc" / "two").mkdir(parents=True)
    (tmp_path / "doc" / "two" / "README").write_text("Another package's.")
    monkeypatch.setenv("HIVLP_DOCUMENTS", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get install one-doc two-doc$"):
        read_documents(packages=packages)
