"""What mkdocs does besides its plugins: pages of results and notebooks, and the public names of a room."""

import base64
import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
from mkdocs.structure.files import File

import hf_evidenceflow


ROOT = Path(__file__).parents[1]
# Linked from the pages; on the site they lie next to them, with the path that they have in the checkout
OUTSIDE = ("results/**/*", "patches/README.md", "benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"\]\(\.\./((?:\.\./)*)(results/|patches/|benchmarks/|CONTRIBUTING|CHANGELOG)")
# The other way round; sources are not on the site, so that of a link to one its text is left
_TO_DOCS = re.compile(r"\]\(((?:\.\./)*)docs/")
_TO_SOURCE = re.compile(r"\[([^\]]+)\]\((?:\.\./)*(?:hf_evidenceflow|recipes|tests|benchmarks)/[^)]+\.(?:py|yaml)\)")
_PUBLIC_NAMES = re.compile(r"^<!-- public names of (\S+) -->$", re.MULTILINE)


def on_files(files, config):
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        if path.is_file():
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    gallery = _neighbor("gallery")
    found = gallery.sections()
    files.append(File.generated(config, "gallery.md", content=gallery.gallery_page(found)))
    for uri, picture in gallery.notebook_pictures(found).items():
        files.append(File.generated(config, uri, content=picture))
    return files


def _neighbor(name: str):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_page_markdown(markdown, page, config, files):
    if page.file.abs_src_path and Path(page.file.abs_src_path).is_relative_to(ROOT / "docs"):
        markdown = _LINK.sub(r"](\1\2", markdown)
    else:
        markdown = _TO_SOURCE.sub(r"\1", _TO_DOCS.sub(r"](\1", markdown))
    markdown = markdown.replace(".ipynb)", ".md)")
    return _PUBLIC_NAMES.sub(lambda match: public_names(match[1]), markdown)


def public_names(room: str) -> str:
    """A `:::` line for each public name whose module lies in a room such as `trainers` or `models.thinking`."""
    try:
        package = importlib.import_module(f"hf_evidenceflow.{room}")
    except ModuleNotFoundError:  # a module's name may stand for a room
        package = None
    names = {f"{hf_evidenceflow.__name__}.{name}": getattr(hf_evidenceflow, name) for name in hf_evidenceflow.__all__}
    names |= {f"{room}.{name}": getattr(package, name) for name in getattr(package, "__all__", ())}
    found = {
        f"{value.__module__}.{value.__qualname__}"
        for value in names.values()
        if getattr(value, "__qualname__", None)
        and f"{value.__module__}.".startswith(f"hf_evidenceflow.{room}.")
        and not value.__module__.endswith("thinking.families")  # made on demand: no source
    }
    found = {
        name.removeprefix("hf_evidenceflow.") if room == "patches" else name for name in found
    }  # as the files lie
    return "\n\n".join(f"::: {name}" for name in sorted(found, key=lambda name: name.rsplit(".", 1)[1].lower()))


def notebook_page(path: Path) -> str:
    """A notebook with its outputs, in Markdown."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *(_output(output) for output in cell.outputs)]
    parts.append(f"*The notebook is `docs/notebooks/{path.name}`.*")
    return "\n\n".join(part for part in parts if part).replace(".ipynb)", ".md)")


def _output(output) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        image = base64.b64encode(base64.b64decode(data["image/png"])).decode()
        return f'<img alt="output" src="data:image/png;base64,{image}">'
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""
