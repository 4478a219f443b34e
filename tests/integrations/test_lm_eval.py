"""Thinking models in the real lm-evaluation-harness, on a local task."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from hf_evidenceflow import load_thinking_model
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES


pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
GENERATE = """
generation_kwargs: {until: ["a"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def checkpoint(plain_checkpoint, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("thinking"))
    torch.manual_seed(7)
    model = load_thinking_model(plain_checkpoint, thinking_residual_r_min=0.05, thinking_residual_r_max=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{n} + {n + 2} =", "answer": f" {2 * n + 2}"} for n in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = json.dumps(str(folder / "data.jsonl"))
    for name, output_type, more in (("sums", "generate_until", GENERATE), ("sums_ll", "loglikelihood", "")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, output_type=output_type, more=more))
    return str(folder)


def evaluate(checkpoint, tasks, model, **model_args):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import hf_evidenceflow.integrations.lm_eval  # noqa: F401  registers the model

    arguments = {"pretrained": checkpoint, "dtype": "float32", "max_length": 100, **model_args}
    results = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["sums", "sums_ll"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        device="cpu",
        batch_size=4,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {name: [row["resps"] for row in rows] for name, rows in results["samples"].items()}
    return samples["sums"], samples["sums_ll"]


@pytest.mark.slow
def test_without_thinking_the_answers_are_those_of_the_stock_model(checkpoint, plain_base, tasks):
    found = evaluate(checkpoint, tasks, "thinking-hf", thinking_mode="none")
    assert found == evaluate(plain_base, tasks, "hf")


@pytest.mark.slow
def test_thinking_changes_what_is_generated_and_no_log_likelihood(checkpoint, plain_base, tasks):
    texts, likelihoods = evaluate(checkpoint, tasks, "thinking-hf")
    plain_texts, plain_likelihoods = evaluate(plain_base, tasks, "hf")
    assert texts != plain_texts
    assert likelihoods == plain_likelihoods


@pytest.fixture(scope="module")
def counted(checkpoint, tmp_path_factory):
    """A checkpoint that has three thoughts before it writes."""
    folder = str(tmp_path_factory.mktemp("counted"))
    fields = {"thinking_mode": "coconut", "thinking_count": 3, "thinking_placeholder_id": 60}
    load_thinking_model(checkpoint, **fields).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_fixed_number_of_thoughts_is_thought_however_the_harness_loads_the_model(counted, tasks):
    expected = evaluate(counted, tasks, "thinking-hf")
    assert evaluate(counted, tasks, "hf") == expected
    assert evaluate(counted, tasks, "thinking-hf", thinking_mode="pause") != expected


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """An adapter of the thinking checkpoint, as our trainer saves it, and what is generated with it."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(THINKING_MODULES[:4]))
    model = get_peft_model(load_thinking_model(checkpoint), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_adapter_gives_the_same_answers_however_the_harness_loads_it(adapter, checkpoint, tasks):
    expected = evaluate(adapter, tasks, "thinking-hf")
    assert evaluate(adapter, tasks, "hf") == expected
    assert evaluate(checkpoint, tasks, "hf") != expected


@pytest.mark.slow
def test_an_adapter_that_the_harness_puts_on_a_plain_base_thinks(adapter, plain_base):
    from lm_eval.models.huggingface import HFLM

    loaded = HFLM(pretrained=plain_base, peft=adapter, device="cpu", dtype="float32").model
    weights = {name: p for name, p in loaded.named_parameters() if "thinking_residual_gate_r.modules_to_save" in name}
    expected = load_thinking_model(adapter).state_dict()
    assert len(weights) == 2 and all(torch.equal(expected[name], weight) for name, weight in weights.items())


@pytest.fixture(scope="module")
def plain_base(checkpoint, tmp_path_factory):
    from hf_evidenceflow import export_base_model

    folder = str(tmp_path_factory.mktemp("plain"))
    export_base_model(load_thinking_model(checkpoint), folder, AutoTokenizer.from_pretrained(checkpoint))
    return folder


@pytest.mark.slow
def test_the_task_file_of_this_package_runs_on_local_data(checkpoint, tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import hf_evidenceflow.integrations.lm_eval  # noqa: F401  registers the model
    from hf_evidenceflow.integrations import tasks as own

    rows = [{"question": f"How much is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("GSM8K_DATA", str(tmp_path))
    results = simple_evaluate(
        model="thinking-hf",
        model_args={"pretrained": checkpoint, "dtype": "float32", "max_length": 900},
        tasks=["gsm8k_local"],
        task_manager=TaskManager(include_path=own.__path__[0], include_defaults=False),
        gen_kwargs={"max_gen_toks": 4},
        device="cpu",
        bootstrap_iters=0,
    )
    assert {"strict,none", "flexible,none"} <= results["results"]["gsm8k_local"].keys()
