"""Rebuild the demo's pictures from Debian's Openclipart package.

    apt-get install openclipart-png openclipart-svg
    python tools/vendor_demo_pictures.py

``captions.jsonl`` is the table that says which pictures and what they show; the captions were written by looking.
The script draws each as a WebP of at most 256 pixels and fills in title, author and licence from its metadata.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image

SIDE, QUALITY = 256, 84
PUBLIC_DOMAIN = ("PublicDomain", "publicdomain")
ASSETS = Path(__file__).resolve().parent.parent / "src" / "hivlp" / "assets" / "pictures"
DUBLIN, RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def about(svg: Path) -> dict[str, str]:
    work = next(node for node in ElementTree.parse(svg).iter() if node.tag.endswith("}Work"))
    licence = next(node.get(f"{RDF}resource", "") for node in work if node.tag.endswith("}license"))
    if not any(word in licence for word in PUBLIC_DOMAIN):
        raise SystemExit(f"{svg} is not in the public domain: {licence}")
    author = work.findtext(f"{DUBLIN}creator//{DUBLIN}title") or "unknown"
    title = work.findtext(f"{DUBLIN}title") or ""
    return {"title": " ".join(title.split()), "author": " ".join(author.split()), "license": "public domain"}


def main(share: Path) -> None:
    table = ASSETS / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for old in ASSETS.glob("*.webp"):
        old.unlink()
    for row in rows:
        source = Path(row["source"])
        row.update(about(share / "svg" / source.with_suffix(".svg")))
        with Image.open(share / "png" / source) as image:
            picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        small = white.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(ASSETS / row["file"], quality=QUALITY, method=6)
    table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/openclipart"))
