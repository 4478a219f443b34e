"""
From a language model to an aligned one: chains that the model samples itself, instructions in the manner of FLAN,
SFT, a reward model, and then PPO, DPO and GRPO from the same SFT checkpoint, in one table.

```bash
python recipes/course/instruction_tuning/run.py --config recipes/configs/course/instruction_tuning.yaml
```

Offline, on two CPU cores: a tiny Qwen2 learns self-made word problems of two steps. Its demonstrations are sloppy on
purpose, so that the later stages have something to correct:

1. base: a causal LM on demonstrations half of which leave out the last step;
2. chains: several samples a question, kept where the answer is right (rejection sampling);
3. SFT: the kept chains and the demonstrations, as several tasks in several wordings and orders (FLAN);
4. reward model: pairwise, on a right and a wrong chain of the same question, drawn from the SFT model;
5. PPO and GRPO on the reward model's score, DPO on the pairs, all from the SFT model.

With a model and questions of your own (rows of `question` and `answer`, as GSM8K's) stage 1 is left out:

```bash
python recipes/course/instruction_tuning/run.py --model_name_or_path Qwen/Qwen2.5-0.5B \
    --dataset_name_or_path openai/gsm8k --dataset_config main --max_new_tokens 256 --max_length 512 \
    --learning_rate 1e-6 --output_dir outputs/gsm8k-tuning
```

Outputs, in `output_dir`: `instruction_tuning.md` (the table), `instruction_tuning.png`, `metrics.json`, `run.json`,
the models (`base`, `sft`, `reward_model`, `ppo`, `dpo`, `grpo`), and the data that they wrote (`chains.json`,
`pairs.json`).

Sources: Wei et al. 2022 (FLAN, 2109.01652), Yuan et al. 2023 (rejection sampling, 2308.01825), Ouyang et al. 2022
(reward model and PPO, 2203.02155), Rafailov et al. 2023 (DPO, 2305.18290), Shao et al. 2024 (GRPO, 2402.03300).
"""

import random
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data import load_tokenizer
from hf_evidenceflow.data.loading import load_split
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes.course.instruction_tuning.alignment_report import (
    alignment_rows,
    alignment_table,
    chain_table,
    plot_alignment,
)
from hf_evidenceflow.recipes.course.instruction_tuning.chains import (
    compare_orders,
    preference_pairs,
    sample_chains,
)
from hf_evidenceflow.recipes.course.instruction_tuning.policy_evaluation import evaluate_policy
from hf_evidenceflow.recipes.course.instruction_tuning.reward_model import reward_model_function
from hf_evidenceflow.recipes.course.instruction_tuning.templates import (
    INSTRUCTIONS,
    build_instruction_tokenizer,
    instruction_mixture,
    render_instruction,
)
from hf_evidenceflow.recipes.course.shared.arguments import check_numbers
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.recipes.course.shared.stages import TRL_SETTINGS, run_stage, stage_settings
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tasks import make_sloppy, split_word_problems
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer


TINY_QWEN2 = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
# Half of the mixture is the task that the later stages go on with
SFT_TASKS = ("explain", "explain", "explain", "justify", "answer", "invert")


METHODS = ("PPO", "DPO", "GRPO")


@dataclass
class InstructionTuningArguments:
    """
    Sizes of the stages.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/instruction_tuning"`):
            Folder of the results.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems, the weights and the sampling.
        model_name_or_path (`str`, *optional*):
            Base model; `None`: a tiny Qwen2, trained here.
        dataset_name_or_path, dataset_config (`str`, *optional*):
            Data with `question`, and `answer` that ends in `#### <number>`; `None`: self-made word problems.
        train_problems, test_problems (`int`, *optional*, default to `4000` and `200`):
            Problems for training and for the table.
        chain_problems (`int`, *optional*, defaults to `1500`):
            Problems of the training data that chains are sampled for, before SFT and again before the reward model.
        chains_per_problem (`int`, *optional*, defaults to `8`):
            Chains a problem, and samples a test problem.
        base_steps, sft_steps, reward_steps, dpo_steps (`int`, *optional*, default to `400`, `250`, `150`, `60`):
            Steps of 64 rows each of the base model, SFT, the reward model and DPO.
        rollouts (`int`, *optional*, defaults to `40`):
            Rollouts of PPO and of GRPO, of 64 completions each, with 2 epochs of 2 minibatches on each.
        learning_rate (`float`, *optional*, defaults to `2e-4`):
            Of PPO and GRPO; half of it for DPO, 5 times as much for the reward model, 15 times for SFT.
        beta, dpo_beta (`float`, *optional*, default to `0.2` and `0.1`):
            KL penalty of PPO and GRPO, and DPO's beta.
        max_new_tokens (`int`, *optional*, defaults to `28`):
            Longest completion.
        max_length (`int`, *optional*, defaults to `128`):
            Longest text of SFT, DPO and the reward model, in tokens.
        methods (`list[str]`, *optional*):
            Ways of alignment to run, by their names or parts of them: `PPO`, `DPO`, `GRPO`. If not given, all.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether a former run in `output_dir` is replaced.
    """

    output_dir: str = "outputs/instruction_tuning"
    seed: int = 0
    model_name_or_path: str | None = None
    dataset_name_or_path: str | None = None
    dataset_config: str | None = None
    train_problems: int = 4000
    test_problems: int = 200
    chain_problems: int = 1500
    chains_per_problem: int = 8
    base_steps: int = 400
    sft_steps: int = 250
    reward_steps: int = 150
    dpo_steps: int = 60
    rollouts: int = 40
    learning_rate: float = 2e-4
    beta: float = 0.2
    dpo_beta: float = 0.1
    max_new_tokens: int = 28
    max_length: int = 128
    methods: list[str] | None = None
    overwrite: bool = True

    def __post_init__(self):
        check_numbers(self, frozenset({"seed", "beta"}))
        self.methods = chosen_methods(METHODS, self.methods)


def settings(args: InstructionTuningArguments, stage: str, steps: int, learning_rate: float) -> dict:
    return stage_settings(Path(args.output_dir) / stage, args.seed, steps, learning_rate) | TRL_SETTINGS


def supervised(args, stage: str, model, rows: list[dict], tokenizer, steps: int, learning_rate: float) -> None:
    """Trains on the completions of the rows."""
    dataset = Dataset.from_list(
        [{"prompt": row["prompt"], "completion": row["completion"] + tokenizer.eos_token} for row in rows]
    )
    config = trl.SFTConfig(**settings(args, stage, steps, learning_rate), max_length=args.max_length)
    run_stage(trl.SFTTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer))


def load_problems(args) -> tuple[list[dict], list[dict]]:
    if args.dataset_name_or_path is None:
        splits = split_word_problems(train=args.train_problems, test=args.test_problems, seed=args.seed)
        return splits["train"], splits["test"]
    configs = (args.dataset_config,) if args.dataset_config else ()
    return tuple(
        load_split(args.dataset_name_or_path, split, configs, ("question", "answer"), count, args.seed).to_list()
        for split, count in (("train", args.train_problems), ("test", args.test_problems))
    )


def load_base(args, demonstrations: list[dict]):
    """The folder or name of the base model, and its tokenizer; by default trained here."""
    if args.model_name_or_path is not None:
        return args.model_name_or_path, load_tokenizer(args.model_name_or_path, padding_side="left")
    tokenizer = build_instruction_tokenizer()
    rows = [render_instruction(row, INSTRUCTIONS["explain"][0]) for row in demonstrations]
    model = model_from_scratch("qwen2", TINY_QWEN2, tokenizer)
    supervised(args, "base", model, rows, tokenizer, args.base_steps, 5e-3)
    return str(Path(args.output_dir) / "base"), tokenizer


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(InstructionTuningArguments, __doc__).parse_args_and_config(argv)
    with course_run("instruction_tuning", args) as run:
        folder = run.folder
        train, test = load_problems(args)
        demonstrations = train if args.dataset_name_or_path else make_sloppy(train, 0.5, args.seed)
        base, tokenizer = load_base(args, demonstrations)
        rng = random.Random(args.seed)
        explain = INSTRUCTIONS["explain"]
        sampling = {"num_samples": args.chains_per_problem, "max_new_tokens": args.max_new_tokens, "batch_size": 400}

        # Chains of the base model, which knows the plain wording only, become instructions
        problems = train[: args.chain_problems]
        sampled = sample_chains(
            AutoModelForCausalLM.from_pretrained(base),
            tokenizer,
            [render_instruction(row, explain[0])["prompt"] for row in problems],
            [row["answer"] for row in problems],
            **sampling,
            seed=args.seed,
        )
        solved = [
            {"question": row["question"], "answer": chain}
            for row, item in zip(problems, sampled)
            for chain in item.right[:4]
        ]
        if not solved:
            raise RuntimeError("The base model gave no right answer. Raise `base_steps` or `chain_problems`.")
        atomic_write_json(folder / "chains.json", solved)
        kept = sum(item.right_share for item in sampled) / len(sampled)
        print(f"Base model: {kept:.0%} of the chains are right; {len(solved)} different ones are kept", flush=True)
        rows = instruction_mixture(solved + demonstrations, SFT_TASKS, seed=args.seed)
        rate = args.learning_rate
        supervised(args, "sft", AutoModelForCausalLM.from_pretrained(base), rows, tokenizer, args.sft_steps, 15 * rate)
        sft = str(folder / "sft")

        # Right against wrong chains of the SFT model, on instructions of all wordings
        prompts = [render_instruction(row, rng.choice(explain))["prompt"] for row in problems]
        answers = [row["answer"] for row in problems]
        sampled = sample_chains(
            AutoModelForCausalLM.from_pretrained(sft), tokenizer, prompts, answers, **sampling, seed=args.seed + 1
        )
        pairs = preference_pairs(sampled, per_question=4, seed=args.seed)
        atomic_write_json(folder / "pairs.json", pairs)
        if len(pairs) < 10:
            raise RuntimeError(f"Only {len(pairs)} pairs of a right and a wrong chain. Raise `chain_problems`.")
        print(f"SFT model: {len(pairs)} pairs of a right and a wrong chain", flush=True)
        pairs = Dataset.from_list(pairs).train_test_split(0.1, seed=args.seed)
        reward_model = AutoModelForSequenceClassification.from_pretrained(sft, num_labels=1)
        config = trl.RewardConfig(
            **settings(args, "reward_model", args.reward_steps, 5 * rate), max_length=args.max_length
        )
        trainer = trl.RewardTrainer(
            reward_model, config, train_dataset=pairs["train"], eval_dataset=pairs["test"], processing_class=tokenizer
        )
        run_stage(trainer)
        reward_accuracy = trainer.evaluate()["eval_accuracy"]
        print(f"Reward model: {reward_accuracy:.2f} of {len(pairs['test'])} held-out pairs in the right order")
        score = reward_model_function(reward_model, tokenizer)

        # Three ways on from the same model
        tasks = [{"prompt": render_instruction(row, rng.choice(explain))["prompt"]} for row in train]
        rollout = {
            "lr_scheduler_type": "constant_with_warmup",
            "per_device_train_batch_size": 32,
            "generation_batch_size": 64,
            "num_iterations": 2,
            "max_completion_length": args.max_new_tokens,
            "beta": args.beta,
        }
        updates = 4 * args.rollouts
        common = {"train_dataset": Dataset.from_list(tasks), "processing_class": tokenizer}
        ppo = PPOConfig(**settings(args, "ppo", updates, rate) | rollout)
        grpo = trl.GRPOConfig(**settings(args, "grpo", updates, rate) | rollout, num_generations=8)
        dpo = trl.DPOConfig(
            **settings(args, "dpo", args.dpo_steps, rate / 2), beta=args.dpo_beta, max_length=args.max_length
        )
        trainers = {
            "PPO": lambda: PPOTrainer(sft, score, args=ppo, **common),
            "DPO": lambda: trl.DPOTrainer(sft, args=dpo, train_dataset=pairs["train"], processing_class=tokenizer),
            "GRPO": lambda: trl.GRPOTrainer(sft, score, args=grpo, **common),
        }
        runs = {name: run_stage(make()) for name, make in trainers.items() if name in args.methods}

        prompts = [render_instruction(row, rng.choice(explain))["prompt"] for row in test]
        answers = [row["answer"] for row in test]
        results = {}
        for name in ("SFT", *runs):
            policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / name.lower(), sft))
            measured = evaluate_policy(
                policy, reference, tokenizer, prompts, answers, score, args.chains_per_problem, args.max_new_tokens
            )
            results[name] = {**measured, "seconds": runs[name]["seconds"] if name in runs else None}
        model = AutoModelForCausalLM.from_pretrained(sft)
        chains = compare_orders(model, tokenizer, test, **sampling, seed=args.seed)
        logs = {name: stage["log"] for name, stage in runs.items()}
        measured = {"base_right_share": kept, "reward_model_accuracy": reward_accuracy}
        run.draw(plot_alignment, alignment_rows(results, logs, chains, measured))
        note = (
            f"Right chains of the base model: {kept:.0%}. Held-out pairs in the right order: {reward_accuracy:.2f}. "
            f"{args.test_problems} test problems, {args.chains_per_problem} samples each, one seed."
        )
        return run.finish(
            [alignment_table(results), chain_table(chains)],
            note,
            {**measured, "chains": chains, **results},
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
