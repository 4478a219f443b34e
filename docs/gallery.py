"""
The gallery: what was published next to what was measured here, claim by claim, as one page of the site.

`results/gallery/*.yaml` has the claims, a file for each publication. Numbers of ours are not typed: a text holds
`{name#place:format}`, where `files` of the YAML file says which file `name` is. In JSON a place is a path of keys; of
a list, `key=value;key=value` takes the item that has these, itself or in its `cell`. In Markdown, and in what a
notebook prints, it is the first cell of a table's row and the head of a column. Where the file or the place is
missing, the claim says "not measured", so that results appear on the page once they are there.

A claim has a `title`, what was `published`, `ours`, a `verdict` (of [`VERDICTS`], or a text such as above), and
optionally `invented` (what the published picture was drawn from in place of measurements), `table` (columns and rows),
`tables_of` (Markdown files whose tables are shown, under their headings; `file.md#heading` is one section),
`pictures` (files or patterns of names, of a notebook its own; or `file: caption`), `command`, `rows` (what it rests on
besides the files that its numbers are read from; `file.md#anchor` links to a section), and `left` (what was not done,
and what it would take). A claim that was measured and has no command has that of its file.
"""

import base64
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import yaml


ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "results" / "gallery"
VERDICTS = ("confirmed", "refuted", "undecided", "not measured")
MISSING = "not measured"
_ROOM_FOR_PICTURES = "---\nhide:\n  - toc\n---\n\n"  # the table of contents would take a quarter of their width
_VALUE = re.compile(r"\{(\w+)#([^{}]+?)(?::([+.\d]*[a-z%]))?\}")


def sections(folder: Path = CLAIMS) -> list[dict[str, Any]]:
    """The files of claims, in the order of their names, with all values read."""
    return [_section(path) for path in sorted(folder.glob("*.yaml"))]


def _section(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = data.pop("files", {})
    data["claims"] = [_claim(claim, files, path.name) for claim in data["claims"]]
    for claim in data["claims"]:
        if claim["verdict"] != MISSING:
            claim.setdefault("command", data["command"])
    return data


def _claim(claim: dict, files: dict, where: str) -> dict[str, Any]:
    values = len(_VALUE.findall(claim.get("ours", "")))
    read = [files[match[0]] for match in _VALUE.findall(json.dumps(claim))]
    claim = _filled(claim, files)
    tables = [file.partition("#")[0] for file in claim.get("tables_of", ())]
    rows = list(dict.fromkeys([*claim.get("rows", ()), *tables, *read]))
    sections_of = {row.partition("#")[0] for row in rows if "#" in row}
    gone = [row for row in rows if not (ROOT / row.partition("#")[0]).exists()]
    claim["rows"] = [row for row in rows if row not in gone and row not in sections_of]
    rests = " ".join(str(claim.get(name, "")) for name in ("ours", "verdict"))
    if MISSING in rests or "ours" not in claim or gone:
        claim["verdict"] = MISSING
    if gone:
        claim.setdefault("left", f"{', '.join(gone)}: not there.")
    elif MISSING in rests:
        claim.setdefault("left", "The files do not hold all of these numbers.")
    if "ours" in claim and (gone or values) and claim["ours"].count(MISSING) == values:
        del claim["ours"]
    if claim["verdict"] not in VERDICTS:
        raise ValueError(
            f"{where}, {claim['title']!r}: `verdict` must be one of {', '.join(VERDICTS)}, got {claim['verdict']!r}."
        )
    return claim


def _filled(value, files):
    """A value of the YAML file with its texts filled in."""
    if isinstance(value, dict):
        return {key: _filled(each, files) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, files) for each in value]
    if not isinstance(value, str):
        return value
    return _VALUE.sub(lambda match: _number(files[match[1]], match[2], match[3] or ""), value)


def _number(file: str, place: str, form: str) -> str:
    try:
        found = look_up(_read(ROOT / file), place)
    except LookupError:
        return MISSING
    if found is None or found == "not run":
        return MISSING
    return format(found, form)


@cache
def _read(path: Path):
    if not path.exists():
        raise LookupError(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".md":
        return markdown_rows(path.read_text(encoding="utf-8"))
    if path.suffix == ".ipynb":
        return markdown_rows("\n".join("".join(output.get("text", "")) for output in _outputs(path)))
    return json.loads(path.read_text(encoding="utf-8"))


def _outputs(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", ())]


def notebook_pictures(found: list[dict[str, Any]]) -> dict[str, bytes]:
    """The pictures of notebooks that claims show, by their place on the site."""
    shown = (path for section in found for claim in section["claims"] for path, _ in _shown(claim))
    return {file: image for path in shown if path.suffix == ".ipynb" for file, image in _images(path).items()}


def _images(notebook: Path) -> dict[str, bytes]:
    images = (output.get("data", {}).get("image/png") for output in _outputs(notebook))
    images = (base64.b64decode(image) for image in images if image)
    return {f"notebooks/{notebook.stem}_{number}.png": image for number, image in enumerate(images)}


def _shown(claim: dict[str, Any]) -> list[tuple[Path, str]]:
    """The files that a claim takes pictures from, with their captions."""
    found = []
    for picture in claim.get("pictures", ()) if "ours" in claim else ():
        pattern, caption = next(iter(picture.items())) if isinstance(picture, dict) else (picture, "")
        found += [(path, caption) for path in sorted(ROOT.glob(pattern))]
    return found


def markdown_rows(text: str) -> dict[str, dict[str, str]]:
    """The cells of all tables by first cell of the row and head of the column; of equal ones the first."""
    rows: dict[str, dict[str, str]] = {}
    for table in markdown_tables(text):
        head, _, *lines = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines())
        for line in lines:
            rows[line[0]] = dict(zip(head, line)) | rows.get(line[0], {})
    return rows


def markdown_tables(text: str) -> list[str]:
    return [match[0].rstrip() for match in re.finditer(r"(?:^\|.*\n?)+", text, re.MULTILINE)]


def _tables_of(file: str) -> list[str]:
    """The tables of a Markdown file, or of one section, each section's heading in bold above them."""
    path, _, wanted = file.partition("#")
    if not (ROOT / path).exists():
        return []
    parts = []
    for section in re.split(r"^#+ ", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading = section.partition("\n")[0].strip()
        if (tables := markdown_tables(section)) and wanted in ("", heading):
            parts += [f"**{heading}**", *tables] if heading and not heading.startswith("|") else tables
    return parts


def look_up(data, place: str):
    """What stands at a place of JSON data; a `LookupError` if nothing does."""
    if isinstance(data, dict) and place in data:  # a key may hold a slash
        return data[place]
    part, _, rest = place.partition("/")
    if isinstance(data, dict):
        found = data[part]
    elif "=" in part:
        wanted = [each.split("=", 1) for each in part.split(";")]
        found = next((item for item in data if all(_has(item, *each) for each in wanted)), None)
        if found is None:
            raise LookupError(place)
    else:
        found = data[int(part)]
    return look_up(found, rest) if rest or place.endswith("/") else found


def _has(item: dict, key: str, value: str) -> bool:
    return str({**item.get("cell", {}), **item}.get(key)) == value


def gallery_page(found: list[dict[str, Any]]) -> str:
    """The page of the sections, in Markdown."""
    counts = [(section["title"], Counter(claim["verdict"] for claim in section["claims"])) for section in found]
    parts = [
        "# Gallery: what was published, and what we measured",
        "Each claim of the publications that this package starts from, next to a measurement of ours. *Confirmed* and "
        "*refuted*: the 95 % interval over seeds is on one side of 0, or the claim is one of fact; *undecided*: it is "
        "not. Numbers of ours are read from the files that a claim links to, when the page is made (`make gallery`); "
        "they are of small models on little text, and say so: signs, not sizes.",
        "| | " + " | ".join(VERDICTS) + " |\n| --- |" + " ---: |" * len(VERDICTS),
    ]
    parts[-1] += "".join(
        f"\n| [{title}](#{_anchor(title)}) | " + " | ".join(str(count[verdict]) for verdict in VERDICTS) + " |"
        for title, count in counts
    )
    for section in found:
        parts.append(f"## {section['title']}\n\n{section['intro']}")
        parts += [_markdown(claim) for claim in section["claims"]]
    return _ROOM_FOR_PICTURES + "\n\n".join(parts) + "\n"


def _anchor(title: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _markdown(claim: dict[str, Any]) -> str:
    verdict = claim["verdict"]
    published = claim["published"]
    if "invented" in claim:
        published += f" *The published picture is drawn from {claim['invented']}.*"
    parts = [
        f"### {claim['title']}",
        f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>',
        '<div class="claim" markdown>',
        f"<div markdown>\n**Published**\n\n{published}\n</div>",
        f"<div markdown>\n**Ours**\n\n{claim.get('ours', MISSING.capitalize())}\n</div>\n</div>",
    ]
    if "table" in claim:
        parts.append(_table(**claim["table"]))
    for file in claim.get("tables_of", ()):
        parts += _tables_of(file)
    if pictures := _pictures(claim):
        parts.append('<div class="pictures" markdown>\n' + "\n".join(pictures) + "\n</div>")
    if "left" in claim:
        parts.append(f"*Not done:* {claim['left']}")
    if "command" in claim:
        code = f"```bash\n{claim['command'].strip()}\n```"
        parts.append(f"<details markdown>\n<summary>Command</summary>\n\n{code}\n</details>")
    if claim["rows"]:
        parts.append("Rests on " + ", ".join(map(_link, claim["rows"])) + ".")
    return "\n\n".join(parts)


def _table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _pictures(claim: dict[str, Any]) -> list[str]:
    parts = []
    for path, caption in _shown(claim):
        files = _images(path) if path.suffix == ".ipynb" else [site_path(path.relative_to(ROOT).as_posix())]
        parts += [_picture(file, caption) for file in files]
    return parts


def _picture(file: str, caption: str = "") -> str:
    image = f"![{Path(file).stem.replace('_', ' ')}]({file}){{ loading=lazy }}"
    below = f"\n<figcaption markdown>{caption}</figcaption>" if caption else ""
    return f'<figure markdown>\n<div class="wide" markdown>\n[{image}]({file})\n</div>{below}\n</figure>'


def _link(file: str) -> str:
    return f"[{file}]({site_path(file)})" if file.startswith(("docs/", "results/")) else f"`{file}`"


def site_path(file: str) -> str:
    """Where a file of the checkout lies on the site."""
    return file.removeprefix("docs/").replace(".ipynb", ".md")
