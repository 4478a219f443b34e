"""
Smaller models: LLM.int8(), NF4 with double quantisation, QLoRA, quantisation-aware training, and three ways to distil.

```bash
python recipes/course/compression/run.py --config recipes/configs/course/compression.yaml
```

80 seconds on one CPU core, offline: a tiny Llama learns stories of a small world. Then

1. its weights are rounded: int8 with and without the split of outlier columns, NF4, FP4, integers of few bits; the
   layers' errors are shown once more with outlier features planted, which so small a model does not grow by itself;
2. QLoRA trains LoRA matrices on its NF4 form, on the same text with the words of each line backwards;
3. quantisation-aware training is set against rounding afterwards, at the same number of bits;
4. a smaller Llama is trained on the text for a while, and goes on in four ways from there: on the text (SFT), with the
   teacher's distribution at a temperature, with TRL's `DistillationTrainer` (reverse KL of each token on samples of
   its own), and with MiniLLM (reverse KL of whole completions, by policy gradient).

With a model and a text of your own:

```bash
python recipes/course/compression/run.py --model_name_or_path Qwen/Qwen2.5-0.5B --text_file text.txt --block_size 512 \
    --outlier_factor 1 --learning_rate 1e-5 --distill_updates 0 --output_dir outputs/qwen-compression
```

Outputs, in `output_dir`: `compression.md` (tables), `compression.png`, `metrics.json`, `run.json`, `samples.json`, and
the models: `teacher`, `nf4`, `qlora` (the LoRA matrices), `qat` (floating-point weights that round well), and the
students `student`, `sft`, `soft_targets`, `on_policy`, `minillm`.

Sources: Dettmers et al. 2022 (LLM.int8(), 2208.07339), Dettmers et al. 2023 (NF4 and QLoRA, 2305.14314), Hinton et al.
2015 (distillation, 1503.02531), Agarwal et al. 2023 (on-policy distillation, 2306.13649), Gu et al. 2023 (MiniLLM,
2306.08543).
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.data.token_cache import encode_documents
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.evaluation.perplexity import score_text
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes.course.compression.compression_plots import compression_rows, plot_compression
from hf_evidenceflow.recipes.course.compression.compression_tables import compression_tables
from hf_evidenceflow.recipes.course.compression.distillation_trainer import SoftTargetConfig, SoftTargetTrainer
from hf_evidenceflow.recipes.course.compression.int8_outliers import Int8Linear, replace_linears
from hf_evidenceflow.recipes.course.compression.layer_errors import int8_forms, int8_layer_errors
from hf_evidenceflow.recipes.course.compression.planted_outliers import plant_outliers
from hf_evidenceflow.recipes.course.compression.qat import convert_qat, prepare_qat, quantize_intx
from hf_evidenceflow.recipes.course.compression.qlora import add_lora, frozen_weights, load_4bit
from hf_evidenceflow.recipes.course.compression.storage import linear_bits, model_bytes
from hf_evidenceflow.recipes.course.compression.student_scores import score_student
from hf_evidenceflow.recipes.course.compression.weight_errors import weight_errors
from hf_evidenceflow.recipes.course.compression.weight_plots import plot_weights, softened
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run, require_course_package
from hf_evidenceflow.recipes.course.shared.stages import TRL_SETTINGS, run_stage, stage_settings
from hf_evidenceflow.rollouts.generation_settings import own_generation_config
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.trainers.minillm_config import MiniLLMConfig
from hf_evidenceflow.trainers.minillm_trainer import MiniLLMTrainer


# Multiples of 64, so that bitsandbytes' CPU kernels take them
TEACHER = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
STUDENT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SHARED = {"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}

STUDENTS = {"SFT": "sft", "soft targets": "soft_targets", "on-policy": "on_policy", "MiniLLM": "minillm"}
METHODS = ("rounding", "outliers", "QLoRA", "QAT")


@dataclass
class CompressionArguments(CourseArguments):
    """
    Sizes of the stages.

    Args:
        model_name_or_path (`str`, *optional*):
            Model to compress, and teacher; `None`: a tiny Llama, trained here.
        methods (`list[str]`, *optional*):
            What to run, by names or parts of them: `rounding`, `outliers`, `QLoRA`, `QAT`, and the students `SFT`,
            `"soft targets"` (and `T = 0.5` and so on), `on-policy` and `MiniLLM`. If not given, all.
        vocab_size (`int`, *optional*, defaults to `600`):
            Tokens of the tiny Llama.
        block_size, batch_size (`int`, *optional*, default to `64` and `32`):
            Tokens a row and rows a step.
        teacher_steps, student_steps (`int`, *optional*, default to `200` and `200`):
            Steps on the text of the teacher, and of the student before the ways part.
        qat_steps, qlora_steps (`int`, *optional*, default to `60` and `60`):
            Steps of quantisation-aware training and of QLoRA.
        distill_updates (`int`, *optional*, defaults to `60`):
            Updates of each way from there; 0: no students.
        learning_rate (`float`, *optional*, defaults to `6e-3`):
            Of the teacher and the students' own ways; half of it for QAT and LoRA, twice for the first student.
        threshold (`float`, *optional*, defaults to `6.0`):
            Magnitude from which on an activation is an outlier.
        outlier_factor (`float`, *optional*, defaults to `20.0`):
            Size of the planted outlier features; 1: none.
        qat_bits, group_size (`int`, *optional*, default to `2` and `32`):
            Bits a weight of QAT, and weights a scale.
        lora_rank (`int`, *optional*, defaults to `8`):
            Rank of QLoRA.
        temperature, soft_weight (`float`, *optional*, default to `2.0` and `0.5`):
            Of distillation with temperature.
        further_temperatures (`list[float]`, *optional*, defaults to `[0.5, 1, 4]`):
            Temperatures of further students with soft targets.
        teacher_share (`float`, *optional*, defaults to `0.2`):
            The teacher's share in MiniLLM's samples.
        prompt_tokens, completion_tokens (`int`, *optional*, default to `12` and `48`):
            Lengths of prompts and of samples.
        eval_prompts (`int`, *optional*, defaults to `128`):
            Held-out prompts for the KLs.
    """

    may_be_zero: ClassVar[frozenset[str]] = CourseArguments.may_be_zero | {
        *("distill_updates", "student_steps", "soft_weight", "teacher_share"),
    }

    output_dir: str = "outputs/compression"
    model_name_or_path: str | None = None
    methods: list[str] | None = None
    vocab_size: int = 600
    block_size: int = 64
    batch_size: int = 32
    teacher_steps: int = 200
    student_steps: int = 200
    qat_steps: int = 60
    qlora_steps: int = 60
    distill_updates: int = 60
    learning_rate: float = 6e-3
    threshold: float = 6.0
    outlier_factor: float = 20.0
    qat_bits: int = 2
    group_size: int = 32
    lora_rank: int = 8
    temperature: float = 2.0
    further_temperatures: list[float] | None = None
    soft_weight: float = 0.5
    teacher_share: float = 0.2
    prompt_tokens: int = 12
    completion_tokens: int = 48
    eval_prompts: int = 128

    def __post_init__(self):
        super().__post_init__()
        self.further_temperatures = self.further_temperatures or [0.5, 1.0, 4.0]
        students = self.students if self.distill_updates else ()
        self.methods = chosen_methods([*METHODS, *students], self.methods)
        if not 2 <= self.qat_bits <= 8:
            raise ValueError(f"`qat_bits` must be from 2 to 8, got {self.qat_bits}.")
        if self.model_name_or_path is None and TEACHER["hidden_size"] % self.group_size:
            raise ValueError(
                f"`group_size` must divide the size of a layer, {TEACHER['hidden_size']}, got {self.group_size}."
            )
        for name in ("soft_weight", "teacher_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")

    @property
    def students(self) -> dict[str, str]:
        """Folders of the students by their name."""
        further = {f"soft targets, T = {value:g}": f"soft_targets_{value:g}" for value in self.further_temperatures}
        return STUDENTS | further


def settings(args: CompressionArguments, stage: str, steps: int, learning_rate: float) -> dict:
    common = stage_settings(Path(args.output_dir) / stage, args.seed, steps, learning_rate)
    return common | {"per_device_train_batch_size": args.batch_size}


def train_on_text(args, stage: str, model, rows, steps: int, learning_rate: float) -> dict:
    config = TrainingArguments(**settings(args, stage, steps, learning_rate))
    return run_stage(Trainer(model, config, train_dataset=rows))


def prompts_of(ids: np.ndarray, ends: np.ndarray, block_size: int, length: int) -> list[list[int]]:
    """The first tokens of each document; of a long one, of each block."""
    starts = [at for first, end in zip([0, *ends], ends) for at in range(first, end - 2 * length, block_size)]
    return [ids[start : start + length].tolist() for start in starts]


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(CompressionArguments, __doc__).parse_args_and_config(argv)
    for package in ("bitsandbytes", "torchao"):
        require_course_package(package, "Compression")
    with course_run("compression", args) as run:
        train, held_out = split_documents(course_documents(args), 0.1)
        if args.model_name_or_path:
            tokenizer = load_tokenizer(args.model_name_or_path, padding_side="left")
        else:
            tokenizer = train_text_tokenizer(train, args.vocab_size)
            tokenizer.padding_side = "left"
        train_ids, train_ends = encode_documents(train, tokenizer)
        test_ids, test_ends = encode_documents(held_out, tokenizer)
        rows = pack_rows(train_ids, train_ends, args.block_size)
        source, rate = args.model_name_or_path or str(run.folder / "teacher"), args.learning_rate
        if args.model_name_or_path is None:
            model = model_from_scratch("llama", SHARED | TEACHER, tokenizer)
            train_on_text(args, "teacher", model, rows, args.teacher_steps, rate)
            tokenizer.save_pretrained(source)

        def load():
            return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

        def measure(model, bits: float | None = None, ids=test_ids) -> dict:
            bits, size, start = bits or linear_bits(model), model_bytes(model), time.perf_counter()
            score = score_text(model.eval(), ids, args.block_size, args.batch_size)
            seconds = time.perf_counter() - start
            measured = {"bits": bits, "bytes": size, "perplexity": score.perplexity, "seconds": seconds}
            return measured | {"row_losses": score.row_losses}

        teacher, weights, outliers, adapters, softer = load(), {}, {}, {}, {}
        quantized = {"float32": measure(teacher)}

        # Rounded after training
        if "rounding" in args.methods:
            quantized["int8"] = measure(replace_linears(load(), lambda layer: Int8Linear(layer, None)))
            split = replace_linears(load(), lambda layer: Int8Linear(layer, args.threshold))
            quantized["int8, outliers split off"] = measure(split)
            for name, settings_4bit in (
                ("FP4", ("fp4", False)),
                ("NF4", ("nf4", False)),
                ("NF4, double", ("nf4", True)),
            ):
                model = load_4bit(source, *settings_4bit)
                quantized[name] = measure(model)
            model.save_pretrained(run.folder / "nf4")
            print(
                ", ".join(f"{name}: perplexity {row['perplexity']:.3f}" for name, row in quantized.items()), flush=True
            )
            weights = weight_errors(teacher, args.seed)
            probe = torch.from_numpy(test_ids[: 8 * args.block_size].astype(np.int64)).reshape(-1, args.block_size)
            softer = softened(teacher, probe)
            plot_weights(teacher, weights, softer, run.folder / "weights.png")

        # The same model with outlier features between its layers
        if "outliers" in args.methods:
            probe = torch.from_numpy(test_ids[: 8 * args.block_size].astype(np.int64)).reshape(-1, args.block_size)
            models = {"as trained": teacher}
            if args.outlier_factor != 1:
                models["planted outliers"] = plant_outliers(load(), args.outlier_factor, seed=args.seed)
            for name, model in models.items():
                outliers[name] = {"errors": int8_layer_errors(model, probe, args.threshold)}
                outliers[name]["perplexity"] = {
                    way: score_text(form, test_ids, args.block_size, args.batch_size).perplexity
                    for way, form in int8_forms(model, args.threshold)
                }

        # LoRA matrices on the NF4 base and, for comparison, on the floating-point one
        if "QLoRA" in args.methods:
            texts = (
                ["\n".join(" ".join(line.split()[::-1]) for line in text.split("\n")) for text in part]
                for part in (train, held_out)
            )
            backward, (backward_test, _) = (encode_documents(text, tokenizer) for text in texts)
            backward_rows = pack_rows(*backward, args.block_size)
            for name, stage, base in (("LoRA", "lora", load), ("QLoRA", "qlora", lambda: load_4bit(source))):
                before = measure(base(), ids=backward_test)
                set_seed(args.seed)
                model = add_lora(base(), args.lora_rank).train()
                frozen = frozen_weights(model)
                trained = train_on_text(args, stage, model, backward_rows, args.qlora_steps, rate / 2)
                after = frozen_weights(model.train())
                adapters[name] = {
                    "bytes": before["bytes"],
                    "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
                    "before": before["perplexity"],
                    "after": score_text(model.eval(), backward_test, args.block_size, args.batch_size).perplexity,
                    "base_unchanged": all(torch.equal(frozen[key], after[key]) for key in frozen),
                    "seconds": trained["seconds"],
                }

        # Trained with its weights rounded in each pass, against rounded afterwards
        if "QAT" in args.methods:
            few, group = args.qat_bits, args.group_size
            for bits in sorted({4, few}, reverse=True):
                quantized[f"int{bits}, groups"] = measure(quantize_intx(load(), bits, group), bits + 32 / group)
            trained = load()
            train_on_text(args, "more", trained, rows, args.qat_steps, rate / 2)
            quantized[f"trained on, then int{few}"] = measure(quantize_intx(trained, few, group), few + 32 / group)
            prepared = prepare_qat(load(), few, group)
            train_on_text(args, "qat", prepared, rows, args.qat_steps, rate / 2)
            quantized[f"QAT int{few}"] = measure(convert_qat(prepared, few, group), few + 32 / group)

        students = distil(args, run.folder, teacher, tokenizer, rows, train_ids, train_ends, test_ids, test_ends)
        run.draw(plot_compression, compression_rows(quantized, outliers, students))
        tables = compression_tables(quantized, outliers, weights, adapters, students)
        note = (
            f"{len(test_ids)} held-out tokens; planted outliers of {args.outlier_factor:g} times, threshold "
            f"{args.threshold:g}; KLs on {args.eval_prompts} prompts, at most {args.completion_tokens} tokens. One "
            "seed."
        )
        metrics = {"quantized": quantized, "outliers": outliers, "weights": weights, "adapters": adapters}
        metrics["entropy_by_temperature"] = {str(value): row["entropy"] for value, row in softer.items()}
        return run.finish(tables, note, metrics | {"students": students})


def distil(args, folder: Path, teacher, tokenizer, rows, train_ids, train_ends, test_ids, test_ends) -> dict:
    """Trains a student, goes on from it in the ways asked for, and scores them all."""
    ways = [name for name in args.students if name in args.methods]
    if not ways:
        return {}
    start, rate, updates = str(folder / "student"), args.learning_rate, args.distill_updates
    config = SHARED | STUDENT | {"vocab_size": teacher.config.vocab_size}
    student = model_from_scratch("llama", config, tokenizer)
    train_on_text(args, "student", student, rows, args.student_steps, 2 * rate)
    tokenizer.save_pretrained(start)
    prompts = prompts_of(train_ids, train_ends, args.block_size, args.prompt_tokens)
    mixed = [
        {"prompt_ids": prompt, "text_ids": rows[i % len(rows)]["input_ids"].tolist()}
        for i, prompt in enumerate(prompts)
    ]
    texts = Dataset.from_list([{"prompt": text} for text in tokenizer.batch_decode(prompts)])

    def load():
        return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)

    def soft_targets(name: str, temperature: float):
        config = settings(args, args.students[name], updates, rate)
        config = SoftTargetConfig(**config, temperature=temperature, soft_weight=args.soft_weight)
        return lambda: SoftTargetTrainer(load(), teacher, config, train_dataset=rows)

    temperatures = dict(zip(list(args.students)[len(STUDENTS) :], args.further_temperatures))
    temperatures["soft targets"] = args.temperature
    on_policy = trl.DistillationConfig(
        **settings(args, "on_policy", updates, rate) | TRL_SETTINGS,
        max_completion_length=args.completion_tokens,
        beta=1.0,
    )
    minillm = MiniLLMConfig(
        **settings(args, "minillm", updates, rate),
        max_completion_length=args.completion_tokens,
        teacher_share=args.teacher_share,
    )
    sft = TrainingArguments(**settings(args, "sft", updates, rate))
    tokens = {"processing_class": tokenizer}
    trainers = {
        "SFT": lambda: Trainer(load(), sft, train_dataset=rows),
        "on-policy": lambda: trl.DistillationTrainer(load(), teacher, on_policy, train_dataset=texts, **tokens),
        "MiniLLM": lambda: MiniLLMTrainer(load(), teacher, minillm, train_dataset=mixed, **tokens),
    }
    trainers |= {name: soft_targets(name, temperature) for name, temperature in temperatures.items()}
    runs = {"start": {"seconds": None}} | {name: run_stage(trainers[name]()) for name in ways}
    held_out = prompts_of(test_ids, test_ends, args.block_size, args.prompt_tokens)[: args.eval_prompts]
    held_out, scores, samples = torch.tensor(held_out), {}, {}
    for name in runs:
        stage = folder / args.students.get(name, "student")
        student = AutoModelForCausalLM.from_pretrained(stage, dtype=torch.float32).eval()
        text = score_text(student, test_ids, args.block_size, args.batch_size)
        scores[name] = {"perplexity": text.perplexity, "seconds": runs[name]["seconds"]}
        scores[name]["temperature"] = temperatures.get(name)
        scores[name] |= score_student(student, teacher, tokenizer, held_out, args.completion_tokens, args.seed)
        set_seed(args.seed)
        config = own_generation_config(student, do_sample=True, max_new_tokens=args.completion_tokens)
        drawn = student.generate(held_out[:4], generation_config=config)
        samples[name] = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    atomic_write_json(folder / "samples.json", samples)
    return scores


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
