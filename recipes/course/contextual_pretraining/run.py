"""
Words in their context: ELMo, a language model in each direction over characters, and BERT, pretrained on masked words
and next sentences, both from scratch on the same text; then what their frozen vectors know about a word's context.

```bash
python recipes/course/contextual_pretraining/run.py --config recipes/configs/course/contextual_pretraining.yaml
```

About two minutes on one CPU core, offline, on stories of a small world. The probe asks a word that says nothing by
itself: `the` for the country of the story, an animal for the gender of its owner. ELMo's own word vector (the
character convolution) and BERT's embedding table know no context; what is above them does. On text of your own the
probe is left out; a single document is cut at its blank lines or, without any, at its line breaks:

```bash
python recipes/course/contextual_pretraining/run.py --text_file wiki.train.txt --wordpiece_size 4000 \
    --elmo_words 8000 --max_length 128 --output_dir outputs/wiki-contextual
```

Written here: ELMo, its scalar mix, the pairs of segments, and a collator that masks whole words in BERT's shares of
80, 10 and 10 %, which Transformers' own gives up for whole words.

Outputs, in `output_dir`: `contextual_pretraining.md` (the tables), `contextual_pretraining.png`, `metrics.json`,
`run.json`, and the models `elmo` (with `words.json`) and `bert` (with its tokenizer).

Sources: Peters et al. 2018 (ELMo, 1802.05365), Devlin et al. 2019 (BERT, 1810.04805).
"""

import re
from dataclasses import dataclass

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from transformers import BertConfig, BertForPreTraining, TrainingArguments

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.recipes.course.contextual_pretraining.configuration_elmo import ElmoConfig
from hf_evidenceflow.recipes.course.contextual_pretraining.elmo_data import (
    ElmoCollator,
    build_vocabulary,
    cut_texts,
    unigram_perplexity,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.masking import WholeWordMaskingCollator
from hf_evidenceflow.recipes.course.contextual_pretraining.modeling_elmo import ElmoForLanguageModeling
from hf_evidenceflow.recipes.course.contextual_pretraining.next_sentence import (
    sample_segment_pairs,
    split_sentences,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_evaluation import (
    evaluate_bert,
    evaluate_elmo,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_plot import (
    plot_pretraining,
    pretraining_rows,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_report import (
    bert_rows,
    described,
    elmo_rows,
    shown,
    stage_note,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.story_probe import (
    country_examples,
    majority_accuracy,
    owner_examples,
    train_probe,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.word_states import bert_states, elmo_states
from hf_evidenceflow.recipes.course.contextual_pretraining.wordpiece import (
    pair_row,
    tokenize_sentences,
    train_wordpiece,
)
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.corpus import generate_corpus
from hf_evidenceflow.recipes.course.shared.logged_parts import LoggedPartsTrainer
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.recipes.course.shared.stages import run_stage, stage_settings
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


METHODS = ("ELMo", "BERT")
HEADS = 4  # of BERT
QUESTIONS = {"country at `the`": country_examples, "owner's gender at the animal": owner_examples}


@dataclass
class ContextualPretrainingArguments(CourseArguments):
    """
    Sizes of the models. Further arguments are those of [`~recipes.course.shared.arguments.CourseArguments`].

    Args:
        validation_share (`float`, *optional*, defaults to `0.1`):
            Share of the documents that is held out.
        hidden_size (`int`, *optional*, defaults to `64`):
            Size of a word in ELMo, for each direction; BERT's states are twice as large, as ELMo's two together.
        elmo_steps, bert_steps (`int`, *optional*, default to `400` and `600`):
            Optimizer steps.
        elmo_learning_rate, bert_learning_rate (`float`, *optional*, default to `5e-3` and `1e-3`):
            Highest learning rates.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts of a step of ELMo, and pairs of a step of BERT.
        bert_layers (`int`, *optional*, defaults to `2`):
            Layers of BERT.
        elmo_words (`int`, *optional*, defaults to `2000`):
            Words that ELMo's softmax chooses from, at most.
        wordpiece_size (`int`, *optional*, defaults to `160`):
            Tokens of BERT's vocabulary. The default is too small for all words to be whole, so that there is something
            to mask together.
        max_words (`int`, *optional*, defaults to `80`):
            Longest text of ELMo.
        max_length (`int`, *optional*, defaults to `128`):
            Longest pair of BERT, in tokens.
        probe_stories (`int`, *optional*, defaults to `4000`):
            New stories for the probe, of which about a quarter has each question.
        methods (`list[str]`, *optional*):
            `elmo`, `bert` or parts of these; `None`: both.
    """

    output_dir: str = "outputs/contextual_pretraining"
    validation_share: float = 0.1
    hidden_size: int = 64
    elmo_steps: int = 400
    bert_steps: int = 600
    elmo_learning_rate: float = 5e-3
    bert_learning_rate: float = 1e-3
    batch_size: int = 32
    bert_layers: int = 2
    elmo_words: int = 2000
    wordpiece_size: int = 160
    max_words: int = 80
    max_length: int = 128
    probe_stories: int = 4000
    methods: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.methods = chosen_methods(METHODS, self.methods)
        if self.max_words < 2 or self.max_length < 5:
            raise ValueError(
                f"`max_words` must be at least 2 and `max_length` at least 5, got {self.max_words} and "
                f"{self.max_length}."
            )
        if "BERT" in self.methods and self.hidden_size % 2:
            raise ValueError(f"`hidden_size` must be even, as twice of it has {HEADS} heads, got {self.hidden_size}.")


def load_text(args: ContextualPretrainingArguments) -> tuple[list[str], list[str]]:
    """Documents for training and held-out ones; a single document is cut into its paragraphs, which stay in order."""
    documents = course_documents(args)
    if len(documents) == 1:
        parts = re.split(r"\n\s*\n", documents[0])
        parts = parts if sum(len(split_sentences(part)) > 1 for part in parts) > 1 else documents[0].split("\n")
        documents = [part for part in parts if part.strip()][: args.max_documents]
    return split_documents(documents, args.validation_share)


def elmo_parts(output, inputs) -> dict:
    return {"forward_loss": output.forward_loss, "backward_loss": output.backward_loss}


def bert_parts(output, inputs) -> dict:
    next_sentence = torch.nn.functional.cross_entropy(output.seq_relationship_logits, inputs["next_sentence_label"])
    return {"masked_token_loss": output.loss - next_sentence, "next_sentence_loss": next_sentence}


def train(args, name: str, model, rows: list[dict], collator, steps: int, rate: float, parts) -> dict:
    settings = stage_settings(f"{args.output_dir}/{name}", args.seed, steps, rate)
    settings["per_device_train_batch_size"] = args.batch_size
    trainer = LoggedPartsTrainer(
        model,
        TrainingArguments(**settings, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=collator,
        parts=parts,
    )
    return run_stage(trainer)


def pretrain_elmo(args, documents: list[str], held_out: list[str]) -> tuple:
    texts, held_texts = (cut_texts(part, args.max_words) for part in (documents, held_out))
    vocabulary = build_vocabulary(texts, args.elmo_words)
    config = ElmoConfig(vocab_size=len(vocabulary), hidden_size=args.hidden_size, lstm_size=2 * args.hidden_size)
    model, collator = ElmoForLanguageModeling(config), ElmoCollator(vocabulary, config.max_characters)
    rows, held_rows = ([{"words": words} for words in part] for part in (texts, held_texts))
    unigram = unigram_perplexity(texts, held_texts, vocabulary)
    run = train(args, "elmo", model, rows, collator, args.elmo_steps, args.elmo_learning_rate, elmo_parts)
    atomic_write_json(f"{args.output_dir}/elmo/words.json", vocabulary)
    return model, collator, run, {**evaluate_elmo(model, collator, held_rows), "unigram_perplexity": unigram}


def segment_pairs(args, documents: list[str], held_out: list[str]) -> tuple:
    """BERT's tokenizer, and its rows for training and held-out ones."""
    tokenizer = train_wordpiece(documents, args.wordpiece_size)
    parts = []
    for index, part in enumerate((documents, held_out)):
        sentences = tokenize_sentences(tokenizer, [split_sentences(document) for document in part])
        pairs = sample_segment_pairs(sentences, args.max_length - 3, seed=args.seed + index)
        parts.append([pair_row(tokenizer, pair) for pair in pairs])
    return tokenizer, *parts


def pretrain_bert(args, tokenizer, rows: list[dict], held_rows: list[dict]) -> tuple:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=2 * args.hidden_size,
        num_hidden_layers=args.bert_layers,
        num_attention_heads=HEADS,
        intermediate_size=8 * args.hidden_size,
        max_position_embeddings=args.max_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    model, collator = BertForPreTraining(config), WholeWordMaskingCollator(tokenizer, seed=args.seed)
    run = train(args, "bert", model, rows, collator, args.bert_steps, args.bert_learning_rate, bert_parts)
    tokenizer.save_pretrained(f"{args.output_dir}/bert")
    measured = evaluate_bert(model, WholeWordMaskingCollator(tokenizer, seed=args.seed + 1), held_rows)
    return model, tokenizer, run, {**measured, "tokens": len(tokenizer), "training_pairs": len(rows)}


def probe_context(args, elmo: tuple | None, bert: tuple | None) -> tuple[dict, dict, dict]:
    """Accuracy by question and representation, ELMo's weights by question, and the numbers of examples."""
    stories = generate_corpus(args.probe_stories, args.seed + 1000)
    results, mixes, sizes = {}, {}, {}
    for question, make in QUESTIONS.items():
        examples = make(stories)
        border = int(0.7 * len(examples))
        labels = torch.tensor([example.label for example in examples])
        ways = {}
        if elmo is not None:
            states = elmo_states(*elmo, examples)
            names = ["word itself (static)", *(f"layer {layer}" for layer in range(1, states.shape[1]))]
            ways |= {f"ELMo {name}": layer for name, layer in zip(names, states.split(1, dim=1))}
            ways["ELMo scalar mix"] = states
        if bert is not None:
            states = bert_states(*bert, examples)
            ways["BERT embedding (static)"], ways["BERT last layer"] = states[:, :1], states[:, -1:]
        found = {
            name: train_probe(states[:border], labels[:border], states[border:], labels[border:])
            for name, states in ways.items()
        }
        results[question] = {name: probe.accuracy._asdict() for name, probe in found.items()}
        results[question]["majority"] = majority_accuracy(labels[:border].tolist(), labels[border:].tolist())._asdict()
        if elmo is not None:
            mixes[question] = found["ELMo scalar mix"].weights
        sizes[question] = {"train": border, "test": len(examples) - border}
        print(f"probe, {question}: {border} examples to train, {len(examples) - border} to test", flush=True)
    return results, mixes, sizes


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(ContextualPretrainingArguments, __doc__).parse_args_and_config(argv)
    with course_run("contextual_pretraining", args) as run:
        documents, held_out = load_text(args)
        print(f"{len(documents)} documents to train, {len(held_out)} held out", flush=True)
        pairs = segment_pairs(args, documents, held_out) if "BERT" in args.methods else None
        rows, logs, metrics, notes, readers = [], {}, {}, [], {}
        if "ELMo" in args.methods:
            model, collator, stage, measured = pretrain_elmo(args, documents, held_out)
            rows += elmo_rows(measured)
            readers["elmo"], logs["ELMo"] = (model, collator), stage["log"]
            metrics["elmo"] = described(model, stage, measured)
            notes.append(stage_note("ELMo", metrics["elmo"], f"{args.elmo_steps} steps of {args.batch_size} texts"))
        if pairs is not None:
            model, tokenizer, stage, measured = pretrain_bert(args, *pairs)
            rows += bert_rows(measured)
            readers["bert"], logs["BERT"] = (model.bert, tokenizer), stage["log"]
            metrics["bert"] = described(model, stage, measured)
            notes.append(stage_note("BERT", metrics["bert"], f"{args.bert_steps} steps of {args.batch_size} pairs"))
        tables = [markdown_table(["held-out text", "", "of"], rows)]
        results, mixes, sizes = {}, {}, {}
        if args.text_file is None and args.dataset_name is None:
            results, mixes, sizes = probe_context(args, readers.get("elmo"), readers.get("bert"))
            names = next(iter(results.values()))
            cells = [[name, *(shown(results[question][name]) for question in results)] for name in names]
            tables.append(markdown_table(["linear probe of a frozen word", *results], cells))
        if mixes:
            layers = ["word itself", *(f"layer {layer}" for layer in range(1, len(next(iter(mixes.values())))))]
            cells = [[question, *(f"{weight:.2f}" for weight in weights)] for question, weights in mixes.items()]
            tables.append(markdown_table(["weight in ELMo's mix", *layers], cells))
        run.draw(plot_pretraining, pretraining_rows(logs, results, mixes, metrics))
        note = (
            f"{len(documents)} documents, {len(held_out)} held out. {' '.join(notes)} Perplexity is of words, a "
            "masked token is a piece of one: the two are not to be compared. One seed."
        )
        if sizes:
            counts = "; ".join(f"{question}: {size['train']} and {size['test']}" for question, size in sizes.items())
            note += f" Examples of the probe, to train and to test: {counts}."
        metrics |= {"probe": results, "mix_weights": mixes, "probe_examples": sizes}
        return run.finish(tables, note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at these sizes a second thread mostly waits for the first
    run_recipe(main)
