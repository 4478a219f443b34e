"""
Look into the layers of any causal language model: what each layer would say, and how far it is from the right token.

```bash
python recipes/probe.py --model_name_or_path Qwen/Qwen2.5-0.5B --output_dir outputs/probe \
    --text "The capital of France is Paris." --text "Two and three make five."
```

`--control true` reads the texts once more with their words in random order: what a layer knows beyond that comes from
the order. `--text_file story.txt` reads texts from a file; without either a short sentence of our own is used. An
adapter folder is loaded on its base model. `--config settings.yaml` takes the arguments from a file.

Of a thinking model, `--prompt "..."` (several times) shows its completion token by token on a page of its own: gate,
latent share, the words nearest to the state, the token it would have written without thinking, and with
`--answer "..."`, one for each prompt, the probability of the right answer over time. `--prompt_file rows.jsonl` takes
rows with `prompt` and, where they are known, `answer` and `thought_targets`. Without other texts these prompts are
what the layers are read for; `--thoughts_only` leaves the layers out.

Time: 15 seconds for a model of 0.3M parameters and one sentence on a CPU, most of it the pictures.

Outputs, in `output_dir`:
- `index.html`: the lens table, layers, trajectories and heat maps on one self-contained page;
- `heat_maps/*.png`, `trajectories.png`: the same pictures as files;
- `layer_tokens`, `layers`, `tokens`, each `.parquet` and `.csv`: one row per layer and token, per layer, per token;
- `control/` with the same tables, and `layers.png`, both by layer, with `--control`;
- `thoughts.html`, `thoughts.json`, with prompts: the completions token by token, as a page and as numbers;
- `run.json`: the run record.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.text import load_documents
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.probe.completion_trace import ThoughtTrace
from hf_evidenceflow.probe.heat_maps import HEAT_MAPS, plot_heat_map, plot_trajectories
from hf_evidenceflow.probe.page import write_probe_page
from hf_evidenceflow.probe.probe import EvidenceProbe, ProbeResult
from hf_evidenceflow.probe.table import layer_means, layer_table, write_tables
from hf_evidenceflow.probe.thoughts import THOUGHT_COLUMNS, thought_table, thought_words
from hf_evidenceflow.probe.thoughts_page import write_thoughts_page
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe


DEFAULT_TEXT = "The old clock on the wall had stopped at noon, so nobody in the house knew what time it was."


@dataclass
class ProbeArguments:
    """
    Arguments of the probe.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder of a causal LM, or the folder of an adapter.
        output_dir (`str`, *optional*, defaults to `"outputs/probe"`):
            Folder of the results.
        text (`list[str]`, *optional*):
            Text to look at; can be given several times.
        text_file (`str`, *optional*):
            Text file, UTF-8, whose texts end with `<|endoftext|>` where there are several; or a data file.
        text_column, text_split (`str`, *optional*, default to `"text"` and `"train"`):
            Column of the texts of a data file, and its split.
        max_texts (`int`, *optional*):
            Texts of the file that are read, from its start. If not given, all.
        control (`bool`, *optional*, defaults to `False`):
            Whether the texts are read with their words in random order, too.
        prompt (`list[str]`, *optional*):
            Prompt that a thinking model completes; can be given several times.
        prompt_file (`str`, *optional*):
            JSON lines with `prompt` and, if they are known, `answer` and `thought_targets`.
        answer (`list[str]`, *optional*):
            Right answer of a prompt, whose probability over time is measured; one for each `prompt`.
        answer_lead (`str`, *optional*):
            Text before an answer. If not given, the model's answer marker and a space.
        thoughts_only (`bool`, *optional*, defaults to `False`):
            Whether to look at thoughts only, not at layers.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest completion of a prompt.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens of a text that are looked at.
        top_k (`int`, *optional*, defaults to `5`):
            Most probable tokens listed for each layer and token.
        step_threshold (`float`, *optional*, defaults to `0.1`):
            Relative step above which a layer counts in the effective depth.
        chunk_size (`int`, *optional*, defaults to `256`):
            Tokens read out at a time; fewer need less memory.
        layer_modules (`str`, *optional*):
            Name of the `ModuleList` of decoder layers, for a model whose layers are not found.
        revision (`str`, *optional*):
            Revision of the model on the Hub.
        dtype (`str`, *optional*):
            Dtype of the weights, such as `"bfloat16"`. If not given, the checkpoint's.
        device (`str`, *optional*):
            Device, such as `"cuda:0"`. If not given, the GPU where there is one.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the model's repository brings.
    """

    model_name_or_path: str
    output_dir: str = "outputs/probe"
    text: list[str] | None = field(default=None, metadata={"action": "extend"})
    text_file: str | None = None
    text_column: str = "text"
    text_split: str = "train"
    max_texts: int | None = None
    control: bool = False
    prompt: list[str] | None = field(default=None, metadata={"action": "extend"})
    prompt_file: str | None = None
    answer: list[str] | None = field(default=None, metadata={"action": "extend"})
    answer_lead: str | None = None
    thoughts_only: bool = False
    max_new_tokens: int = 64
    max_length: int = 256
    top_k: int = 5
    step_threshold: float = 0.1
    chunk_size: int = 256
    layer_modules: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        self.text = [self.text] if isinstance(self.text, str) else self.text
        if self.text is not None and self.text_file is not None:
            raise ValueError(f"Give `text` or `text_file`, not both; got {self.text} and {self.text_file!r}.")
        self.prompt = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError(f"Give `prompt` or `prompt_file`, not both; got {self.prompt} and {self.prompt_file!r}.")
        self.answer = [self.answer] if isinstance(self.answer, str) else self.answer
        if self.answer is not None and len(self.answer) != len(self.prompt or []):
            raise ValueError(
                f"`answer` must be one for each `prompt`, got {len(self.answer)} for {len(self.prompt or [])}. Rows "
                "of a `prompt_file` have theirs under `answer`."
            )
        check_least(self, max_new_tokens=1, max_length=2, top_k=1, chunk_size=1, max_texts=1)
        if self.thoughts_only and self.prompt is None and self.prompt_file is None:
            raise ValueError(
                "`thoughts_only=True` looks at the completions of prompts. Give `prompt` or `prompt_file`."
            )


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(ProbeArguments, __doc__).parse_args_and_config(argv)
    folder, name = Path(args.output_dir), Path(args.model_name_or_path).name
    with run_record(folder, probe=args) as record:
        prompts, targets, answers = read_prompts(args)
        model, tokenizer = load_model(
            args.model_name_or_path,
            device=args.device,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            dtype=args.dtype,
        )
        thoughts, layers = [], []
        if prompts:
            thoughts = thought_words(
                model,
                tokenizer,
                prompts,
                targets,
                args.top_k,
                args.max_new_tokens,
                answers=answers,
                lead=args.answer_lead,
            )
            atomic_write_json(folder / "thoughts.json", [asdict(trace) for trace in thoughts])
            headline = f"Mode {model.config.thinking_mode}, greedy."
            page = write_thoughts_page(thoughts, folder / "thoughts.html", f"Thoughts of {name}", headline)
        if not args.thoughts_only:
            texts = read_texts(args, [trace.prompt for trace in thoughts])
            result = probe_texts(args, model, tokenizer, texts)
            page, layers = save_layers(result, folder, name), layer_table(result).to_dict("records")
            record.add(texts=texts, tokens=len(result.labels), layers=layers)
            if args.control:
                shuffled = [shuffled_words(text, number) for number, text in enumerate(texts)]
                control = probe_texts(args, model, tokenizer, shuffled)
                write_tables(control, folder / "control")
                means = {"text": layer_means(result), "its words in random order": layer_means(control)}
                plot_layers(means, folder / "layers.png")
    console = Console()
    for trace in thoughts:
        show_thoughts(console, trace)
    for row in layers:
        layer = "embedding" if row["layer"] < 0 else f"layer {row['layer']}"
        console.print(f"{layer:>9}: cross-entropy {row['lens_loss']:.3f}, accuracy {row['lens_accuracy']:.0%}")
    console.print(f"Page: {page}", highlight=False, soft_wrap=True)
    return {"layers": layers, "page": page}


def probe_texts(args: ProbeArguments, model, tokenizer, texts: list[str]) -> ProbeResult:
    probe = EvidenceProbe(
        model,
        tokenizer,
        layer_modules=args.layer_modules,
        top_k=args.top_k,
        step_threshold=args.step_threshold,
        chunk_size=args.chunk_size,
        max_length=args.max_length,
    )
    return probe.probe(texts)


def save_layers(result: ProbeResult, folder: Path, name: str) -> Path:
    """Tables, pictures and the page of the layers."""
    write_tables(result, folder)
    heat_maps = {each: plot_heat_map(result, each, folder / "heat_maps" / f"{each}.png") for each in HEAT_MAPS}
    trajectories = plot_trajectories(result, folder / "trajectories.png")
    return write_probe_page(result, folder / "index.html", name, heat_maps, trajectories)


def read_prompts(args: ProbeArguments) -> tuple[list, list | None, list | None]:
    """Prompts, the targets of their thoughts, and their answers; `None` where no row has any."""
    if args.prompt_file is None:
        return args.prompt or [], None, args.answer
    rows = read_json_lines(args.prompt_file)
    for number, row in enumerate(rows, 1):
        if not row.get("prompt"):
            raise ValueError(f"Line {number} of `{args.prompt_file}` has no `prompt`.")
    targets = [row.get("thought_targets") or [] for row in rows]
    answers = [row.get("answer") for row in rows]
    return [row["prompt"] for row in rows], targets if any(targets) else None, answers if any(answers) else None


def shuffled_words(text: str, seed: int) -> str:
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def plot_layers(columns: Mapping[str, Mapping[str, list]], path: Path) -> None:
    """Cross-entropy by layer, with the interval over texts, from `layer_means` by label."""
    figure = new_figure((6.4, 3.6))
    panel = figure.subplots()
    for color, (label, means) in zip(COLOURS, columns.items()):
        panel.plot(means["layer"][1:], means["lens_loss"][1:], color=color, label=label)
        if "lens_loss_low" in means:
            low, high = means["lens_loss_low"][1:], means["lens_loss_high"][1:]
            panel.fill_between(means["layer"][1:], low, high, color=color, alpha=0.2, linewidth=0)
    finish_panel(panel, "Logit lens by layer", "layer", "cross-entropy of the next token, nats")
    panel.legend(fontsize=8)
    save_figure(figure, path)


def show_thoughts(console: Console, trace: ThoughtTrace) -> None:
    table = Table(*THOUGHT_COLUMNS, title=escape(repr(trace.prompt)), caption=escape(repr(trace.completion)))
    for row in thought_table(trace):
        table.add_row(*map(escape, row))
    console.print(table)


def read_texts(args: ProbeArguments, prompts: list[str]) -> list[str]:
    if args.text_file is None:
        return args.text or prompts or [DEFAULT_TEXT]
    documents = load_documents(args.text_file, args.text_split, text_column=args.text_column)
    return [document.strip() for document in documents[: args.max_texts]]


if __name__ == "__main__":
    run_recipe(main)
