"""The demo: index the pictures that ship with the package, ask a few questions, and write one page with the answers.

The captions of the pictures are shown, never searched: every answer comes from what the model sees.
"""

from __future__ import annotations

import base64
import html
import io
import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hivlp.data.pictures import decode
from hivlp.encode.base import Encoder
from hivlp.errors import HivlpError
from hivlp.index import AddReport, Index, SearchResult
from hivlp.levels import Vectors

QUERIES = (
    "a red car",
    "something sweet to eat",
    "a bird",
    "a musical instrument with strings",
    "a dog",
    "flowers in a pot",
    "a place to live",
    "a tool for the garden",
    "a boat at sea",
    "someone wearing a hat",
)
QUERY_PICTURE = "slice-of-pepperoni-pizza.webp"
HITS = 8
SHORTLIST = 40
THUMBNAIL = 160


@dataclass
class DemoResult:
    """What the demo did.

    Attributes:
        page: the page it wrote.
        report: what was indexed.
        answers: title of each query and its hits.
    """

    page: Path
    report: AddReport
    answers: list[tuple[str, SearchResult]]

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp demo --json`` prints."""
        queries = [{"query": title, **result.to_json()} for title, result in self.answers]
        return {"page": str(self.page), "index": self.report.to_json(), "queries": queries}


def pictures_folder() -> Path:
    """Where the pictures that ship with the package are."""
    return Path(str(resources.files("hivlp") / "assets" / "pictures"))


def run_demo(out: Path, model: Encoder) -> DemoResult:
    """Index, search, and write ``out/index.html``; ``out/demo.hivlp`` is the index, open to further searches.

    Raises:
        HivlpError: if ``out`` cannot be written.
    """
    folder = pictures_folder()
    table = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    captions = {str(folder / row["file"]): row["caption"] for row in table}
    place = out / "demo.hivlp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if Index.exists(place):
            shutil.rmtree(place)  # the demo's own; a fresh one shows the whole job
    except OSError as error:
        raise HivlpError(f"{out} cannot be written: {error.strerror}") from error
    with Index.create(place, model=model) as index, tqdm(total=len(table), desc="index", disable=None) as bar:
        report = index.add(folder, captions=captions, on_progress=lambda done: bar.update(done.seen - bar.n))
        if report.added == 0:
            raise HivlpError("this installation lacks the demo's pictures; reinstall hivlp")
        index.search(QUERIES[0], k=1)  # opens the text model, so that the first timing is not its loading time
        answers = [(query, index.search(query, k=HITS, shortlist=SHORTLIST)) for query in QUERIES]
        picture = folder / QUERY_PICTURE
        answers.append((f"like this picture: {captions[str(picture)]}",
                        index.search(image=picture, k=HITS, shortlist=SHORTLIST)))  # fmt: skip
        page = out / "index.html"
        page.write_text(_page(index, model, answers, report), encoding="utf-8")
    return DemoResult(page, report, answers)


def format_text(result: DemoResult) -> str:
    """The answers for a terminal."""
    report = result.report
    lines = [
        f"{report.added} pictures indexed in {report.seconds:.1f} s ({report.added / report.seconds:.0f} a second)"
    ]
    for title, hits in result.answers:
        timings = ", ".join(f"{stage} {value:.2f} ms" for stage, value in hits.timings_ms.items())
        lines += ["", f"{title}   [{timings}]"]
        for hit in hits[:5]:
            scores = "  ".join(f"{level} {score:.3f}" for level, score in hit.scores.items())
            lines.append(f"  {hit.rank}. {hit.caption:<44} {scores}")
    return "\n".join([*lines, "", f"page: {result.page}"])


def _page(index: Index, model: Encoder, answers: list[tuple[str, SearchResult]], report: AddReport) -> str:
    items = list(index.items())
    thumbnails = {item.id: _thumbnail(Path(item.path)) for item in items}
    vectors = [index.vectors(item.id) for item in items]
    coarse, fine = (np.concatenate([getattr(part, name) for part in vectors]) for name in ("coarse", "fine"))
    data = {
        "items": [{"id": item.id, "caption": item.caption, "thumb": thumbnails[item.id]} for item in items],
        "levels": [{"dim": int(array.shape[1]), "data": _int8(array)} for array in (coarse, fine)],
        "shortlist": SHORTLIST,
        "hits": HITS,
    }
    levels = index.levels
    template = Template((resources.files("hivlp") / "assets" / "demo.html").read_text(encoding="utf-8"))
    return template.substitute(
        count=len(items),
        model=html.escape(model.name),
        coarse_dim=levels[0].dim,
        fine_dim=levels[-1].dim,
        shortlist=SHORTLIST,
        rate=f"{report.added / report.seconds:.0f}",
        nav="".join(f'<a href="#q{n}">{html.escape(title)}</a>' for n, (title, _) in enumerate(answers)),
        sections="".join(_section(n, title, hits) for n, (title, hits) in enumerate(answers)),
        # "</" would end the script element, wherever it stands.
        data=json.dumps(data).replace("</", "<\\/"),
    )


def _section(number: int, title: str, result: SearchResult) -> str:
    timings = result.timings_ms
    cards = "".join(
        f'<li><button class="card" data-id="{hit.id}"><img alt="" data-thumb="{hit.id}">'
        f"<b>{hit.rank}. {html.escape(hit.caption or '')}</b>{_bars(hit.scores)}</button></li>"
        for hit in result
    )
    return (
        f'<section id="q{number}"><h2>{html.escape(title)}</h2>'
        f'<p class="time">query encoded in {timings["encode"]:.1f} ms · coarse scan {timings["coarse"]:.2f} ms · '
        f"fine decision {timings['fine']:.2f} ms</p><ol>{cards}</ol></section>"
    )


def _bars(scores: dict[str, float]) -> str:
    return "".join(
        f'<span class="bar {level}"><i style="width:{max(0, min(100, round(100 * score)))}%"></i>'
        f"<em>{level} {score:.2f}</em></span>"
        for level, score in scores.items()
    )


def _thumbnail(path: Path) -> str:
    image = decode(path, target=THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=4)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _int8(vectors: Vectors) -> str:
    """Unit vectors as base64 of round(127 x), (N, dim) int8."""
    return base64.b64encode(np.rint(127 * vectors).astype(np.int8).tobytes()).decode("ascii")
