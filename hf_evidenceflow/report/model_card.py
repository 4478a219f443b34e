"""The model card of a trained model: how it is used, what it came to, how it was made."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_text
from .run_record import package_versions, read_run_record


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
SAMPLE_LETTERS = 600


@dataclass
class Sample:
    """
    A completion as the card shows it.

    Args:
        prompt, completion (`str` or `list[dict]`):
            Texts or chats.
        reward (`float`):
            Its reward.
        latent_weight (`float`, *optional*):
            Mean weight of the thinking state in the inputs of its tokens, 0 to 1.
    """

    prompt: Any
    completion: Any
    reward: float
    latent_weight: float | None = None

    @property
    def heading(self) -> str:
        latent = "" if self.latent_weight is None else f", latent weight {self.latent_weight:.1%} a token"
        return f"Reward {self.reward:.3g}{latent}:"

    @property
    def text(self) -> str:
        return f"{_shortened(_plain(self.prompt))}\n---\n{_shortened(_plain(self.completion))}"

    @property
    def fence(self) -> str:
        """Longer than any run of backticks in the text, which so cannot end the block."""
        return "`" * (1 + max([2, *map(len, re.findall("`+", self.text))]))


@dataclass
class CardContent:
    """
    What a card says besides the run record of the folder.

    Args:
        title, summary (`str`):
            Heading, and a paragraph in Markdown.
        snippet (`str`):
            Python that loads the model and generates.
        remote_snippet (`str`, *optional*):
            The same without this package.
        metadata (`Mapping`, *optional*):
            Fields of [`~huggingface_hub.ModelCardData`].
        results (`Sequence[str]`, *optional*):
            Items in Markdown.
        tables (`Mapping[str, Mapping]`, *optional*):
            Settings by heading.
        samples (`Sequence[Sample]`, *optional*):
            Completions.
        facts (`Sequence[str]`, *optional*):
            Further items of the reproduction.
        citation, notes (`str`, *optional*):
            BibTeX, and Markdown for the end.
    """

    title: str
    summary: str
    snippet: str
    remote_snippet: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[str] = ()
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    facts: Sequence[str] = ()
    citation: str | None = None
    notes: str | None = None


def write_model_card(folder: str | os.PathLike, content: CardContent) -> Path:
    """
    Write `README.md` into a model's folder. `curves.png` is shown if it is there.

    Args:
        folder (`str` or `os.PathLike`):
            The model's folder; its `run.json` gives command and commit.
        content ([`CardContent`]):
            What the card says.

    Returns:
        `Path`: the path.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    record = read_run_record(folder) or {}
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items() if version)
    known = {"Command": f"`{record['command']}`" if record.get("command") else None, "Commit": record.get("git")}
    reproduction = [f"{name}: {value}" for name, value in known.items() if value] + [*content.facts]
    card = ModelCard.from_template(
        ModelCardData(**content.metadata),
        template_path=str(TEMPLATE),
        title=content.title,
        summary=content.summary,
        snippet=content.snippet,
        remote_snippet=content.remote_snippet,
        curves="curves.png" if (folder / "curves.png").exists() else None,
        results=content.results,
        tables={
            heading: {name: _cell(value) for name, value in rows.items()} for heading, rows in content.tables.items()
        },
        samples=content.samples,
        reproduction=[*reproduction, f"Versions: {versions}"],
        citation=content.citation,
        notes=content.notes,
    )
    return atomic_write_text(folder / "README.md", f"{str(card).rstrip()}\n")


def generation_snippet(
    name: str,
    question: Any,
    loader: str,
    chat: bool,
    marker: bool,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """
    Python that loads a model and continues a prompt.

    Args:
        name (`str`):
            Hub name or folder.
        question (`str` or `list[dict]`):
            Prompt, a text or a chat.
        loader (`str`):
            Import and loading call: two lines, the second one with `name`.
        chat (`bool`):
            Whether the prompt goes through the chat template.
        marker (`bool`):
            Whether `generate` takes the tokenizer, to find the end of thinking.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template, as in the training.
    """
    imported, load = loader.split("\n")
    prompt = f"prompt = {question!r}"
    if chat:
        further = "".join(f", {key}={value!r}" for key, value in (chat_template_kwargs or {}).items())
        prompt += "\nprompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True"
        prompt += f"{further})"
    special = ", add_special_tokens=False" if chat else ""  # the template has them
    return f"""from transformers import AutoTokenizer
{imported}

name = {name!r}
tokenizer = AutoTokenizer.from_pretrained(name)
{load}
{prompt}
inputs = tokenizer(prompt, return_tensors="pt"{special})
output = model.generate(**inputs, {"tokenizer=tokenizer, " if marker else ""}max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def _plain(value: Any) -> str:
    return str(value[-1].get("content", "")) if isinstance(value, list) and value else str(value)


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SAMPLE_LETTERS else f"{text[:SAMPLE_LETTERS].rstrip()} …"


def _cell(value: Any) -> str:
    value = f"{value:.4g}" if isinstance(value, float) else str(value)
    return value.replace("|", "\\|").replace("\n", " ")
