import dataclasses
import importlib.util
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from repository import RECIPES
from task_rows import ARC
from transformers import AutoModelForCausalLM

from hf_evidenceflow import load_thinking_model
from hf_evidenceflow.report.model_card import CardContent, write_model_card
from hf_evidenceflow.tasks import BENCHMARKS, GRADERS


PROBLEMS = [
    {"question": "Ann has 2 eggs and buys 3. How many?", "answer": "2 + 3 = 5\n#### 5"},
    {"question": "Bob had 9 pens, lost 2, and then found 4 of them in the garden. How many?", "answer": "11\n#### 11"},
    {"question": "What is half of 1,000?", "answer": "#### 500"},
    {"question": "Cy walks 7 miles.", "answer": "#### 7"},
    {"question": "Di has no cats, but 13 dogs.", "answer": "#### 13"},
]


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    # A tiny model's threads wait for each other more than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe():
    path = RECIPES / "evaluate_gsm8k.py"
    spec = importlib.util.spec_from_file_location("evaluate_gsm8k", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return path


@pytest.fixture
def evaluate(recipe, plain_checkpoint, dataset, tmp_path):
    """Calls the recipe's main(); keyword arguments are options, and `output` names the folder."""

    def evaluate(output="out", **options):
        options = {
            "model_name_or_path": plain_checkpoint,
            "dataset_name_or_path": dataset,
            "output_dir": tmp_path / output,
            "batch_size": 2,
            "max_new_tokens": 6,
            "temperature": 1.0,
            "device": "cpu",
        } | options
        argv = [word for name, value in options.items() for word in (f"--{name}", *map(str, _listed(value)))]
        recipe.main(argv)
        return tmp_path / output

    return evaluate


def _listed(value):
    return value if isinstance(value, list) else [value]


def rows(folder, decoding):
    lines = (folder / f"{decoding}.jsonl").read_text().split("\n")[:-1]
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "crc32")} for line in lines
    ]


def completions(folder):
    return [row["completion"] for row in rows(folder, "greedy")]


def test_each_problem_is_answered_once_greedily_and_num_samples_times(evaluate):
    out = evaluate(num_samples=3)
    assert sorted(row["id"] for row in rows(out, "greedy")) == [0, 1, 2, 3, 4]
    assert sorted((row["id"], row["sample"]) for row in rows(out, "sampled")) == [
        (i, s) for i in range(5) for s in range(3)
    ]


def test_gold_stays_with_its_prompt(evaluate):
    for row in rows(evaluate(), "greedy"):
        problem = PROBLEMS[row["id"]]
        assert problem["question"] in row["prompt"]
        assert row["gold"] == problem["answer"].split("#### ")[1]


def test_metrics_have_intervals_for_each_grader_and_measure(evaluate):
    metrics = json.loads((evaluate(graders=["strict", "flexible"], num_samples=3) / "metrics.json").read_text())
    for grader in ("strict", "flexible"):
        measures = metrics["greedy"]["graders"][grader] | metrics["sampled"]["graders"][grader]
        assert measures.keys() == {"accuracy", "avg@3", "pass@1", "pass@3", "unparsable_share"}
        assert measures["accuracy"]["low"] <= measures["accuracy"]["value"] < measures["accuracy"]["high"]
    assert metrics["greedy"]["graders"].keys() == {"strict", "flexible"}


def test_right_answers_score_one(recipe, evaluate, monkeypatch):
    real = recipe.generate_completions

    def answer(item):
        return next(problem["answer"] for problem in PROBLEMS if problem["question"] in item.prompt)

    def right(*args, **kwargs):
        for batch in real(*args, **kwargs):
            yield [dataclasses.replace(item, text=answer(item)) for item in batch]

    monkeypatch.setattr(recipe, "generate_completions", right)
    metrics = json.loads((evaluate() / "metrics.json").read_text())
    accuracies = {name: measures["accuracy"]["value"] for name, measures in metrics["greedy"]["graders"].items()}
    assert accuracies == dict.fromkeys(GRADERS, 1.0)


@pytest.fixture
def interrupt(recipe, monkeypatch):
    """Presses Ctrl-C after `batches` batches, counted over both decodings, and tears the line written last."""

    def interrupt(evaluate, batches):
        left = batches
        append = recipe.CompletionLog.append

        def appended(log, rows):
            nonlocal left
            append(log, rows)
            left -= 1
            if left == 0:
                log.path.write_bytes(log.path.read_bytes()[:-20])
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(recipe.CompletionLog, "append", appended)
            evaluate("interrupted", num_samples=2)

    return interrupt


@pytest.mark.parametrize("batches", [2, 5])
def test_resumed_equals_uninterrupted(evaluate, interrupt, batches):
    whole = evaluate("whole", num_samples=2)
    interrupt(evaluate, batches)
    resumed = evaluate("interrupted", num_samples=2)
    for decoding in ("greedy", "sampled"):
        assert rows(resumed, decoding) == rows(whole, decoding)


def test_an_interrupted_run_says_so_and_then_finishes(evaluate, interrupt, tmp_path):
    interrupt(evaluate, 1)
    assert json.loads((tmp_path / "interrupted" / "run.json").read_text())["status"] == "interrupted"
    record = json.loads((evaluate("interrupted", num_samples=2) / "run.json").read_text())
    assert record["status"] == "finished" and record["previous"][0]["status"] == "interrupted"


@pytest.fixture
def generates_nothing(recipe, monkeypatch):
    def generate(*args, **kwargs):
        raise AssertionError("generate() was called")

    def start():
        monkeypatch.setattr(recipe, "load_model", without_generate)

    load = recipe.load_model

    def without_generate(*args, **kwargs):
        model, tokenizer = load(*args, **kwargs)
        model.generate = generate
        return model, tokenizer

    return start


def test_a_finished_evaluation_reports_again_without_generating(evaluate, generates_nothing):
    before = json.loads((evaluate() / "metrics.json").read_text())
    generates_nothing()
    assert json.loads((evaluate() / "metrics.json").read_text()) == before


def test_other_graders_grade_the_saved_completions(evaluate, generates_nothing):
    evaluate(graders="hrpo_legacy")
    generates_nothing()
    out = evaluate(graders=["strict", "flexible"])
    assert all(row["scores"].keys() == {"strict", "flexible"} for row in rows(out, "greedy"))


def test_another_setting_in_the_same_folder_is_an_error(evaluate):
    evaluate()
    with pytest.raises(ValueError, match=r"`batch_size` was 2 and is now 3"):
        evaluate(batch_size=3)


def test_retrained_weights_in_the_same_folder_are_an_error(evaluate, plain_checkpoint, tmp_path):
    path = shutil.copytree(plain_checkpoint, tmp_path / "model")
    evaluate(model_name_or_path=path)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(path)
    with pytest.raises(ValueError, match=r"`weights` was '\w+' and is now"):
        evaluate(model_name_or_path=path)


def test_the_models_card_gets_the_result_with_the_latent_weight_unless_told_otherwise(
    evaluate, plain_checkpoint, tokenizer, tmp_path, capsys
):
    model = tmp_path / "thinking"
    load_thinking_model(plain_checkpoint).save_pretrained(model)
    tokenizer.save_pretrained(model)
    card = write_model_card(model, CardContent("Ours", "A model.", "pass", metadata={"tags": ["hf_evidenceflow"]}))
    before = card.read_text()
    evaluate(model_name_or_path=model, update_model_card=False)
    assert card.read_text() == before
    out = evaluate(model_name_or_path=model)
    first = next(row for row in rows(out, "greedy") if row["id"] == 0)
    assert 0 < first["latent_weight"] < 1
    assert f"latent weight {first['latent_weight']:.1%} a token" in card.read_text()
    assert card.read_text().count("latent weight") == 3 and "5 problems of `test.jsonl`" in card.read_text()
    assert f"Model card: {card}" in capsys.readouterr().out


def test_a_thinking_model_counts_its_thinking_tokens(evaluate, plain_checkpoint, tokenizer, tmp_path):
    load_thinking_model(plain_checkpoint).save_pretrained(tmp_path / "thinking")
    tokenizer.save_pretrained(tmp_path / "thinking")
    out = evaluate(model_name_or_path=tmp_path / "thinking")
    assert all(0 < row["thinking_tokens"] <= row["completion_tokens"] for row in rows(out, "greedy"))


def test_thinking_mode_none_gives_the_plain_models_completions(evaluate, plain_checkpoint, tokenizer, tmp_path):
    load_thinking_model(plain_checkpoint).save_pretrained(tmp_path / "thinking")
    tokenizer.save_pretrained(tmp_path / "thinking")
    without = evaluate("none", model_name_or_path=tmp_path / "thinking", thinking_mode="none")
    plain = evaluate("plain")
    assert completions(without) == completions(plain)


def test_thinking_mode_of_a_plain_model_is_an_error(evaluate):
    with pytest.raises(ValueError, match=r"`thinking_mode='none'`.*`qwen2` model"):
        evaluate(thinking_mode="none")


def test_an_adapter_folder_without_tokenizer_is_evaluated_on_its_base(evaluate, plain_checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint)
    get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    out = evaluate("adapter_out", model_name_or_path=tmp_path / "adapter")
    # A fresh adapter is the identity.
    assert completions(out) == completions(evaluate("plain"))


def test_an_adapter_of_a_thinking_model_thinks(evaluate, plain_checkpoint, tokenizer, tmp_path):
    path, base = tmp_path / "adapter", load_thinking_model(plain_checkpoint)
    gates = ["thinking_residual_gate_r", "thinking_residual_gate_i", "thinking_residual_Lambda", "thinking_projection"]
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=gates))
    for saved in (model, base.config, tokenizer):
        saved.save_pretrained(path)
    assert rows(evaluate(model_name_or_path=path), "greedy")[0]["thinking_tokens"] > 0


def test_problems_in_hash_order_are_the_same_ones_whatever_the_order_of_the_file(evaluate, dataset):
    prompts = [row["prompt"] for row in rows(evaluate(max_samples=3, order="hash"), "greedy")]
    lines = dataset.read_text().splitlines(keepends=True)
    dataset.write_text("".join(reversed(lines)))
    assert [row["prompt"] for row in rows(evaluate("reversed", max_samples=3, order="hash"), "greedy")] == prompts


def test_fewer_problems_in_hash_order_are_among_more(evaluate):
    few, more = (evaluate(f"of_{count}", max_samples=count, order="hash") for count in (2, 4))
    asked = [{row["id"]: row["prompt"] for row in rows(folder, "greedy")} for folder in (few, more)]
    assert asked[0].items() < asked[1].items()


def test_an_unknown_order_is_an_error(evaluate):
    with pytest.raises(ValueError, match="order"):
        evaluate(order="random")


def test_without_a_system_prompt_the_question_stands_alone(evaluate):
    (row,) = rows(evaluate(system_prompt="none", max_samples=1), "greedy")
    assert row["prompt"] == f"{PROBLEMS[0]['question']}\n"


def test_arguments_can_come_from_a_yaml_file(evaluate, tmp_path):
    (tmp_path / "settings.yaml").write_text("top_k: 5\ngraders: strict\n")
    settings = json.loads((evaluate(config=tmp_path / "settings.yaml") / "settings.json").read_text())
    assert settings["top_k"] == 5


def test_an_unknown_key_in_the_yaml_file_is_an_error(evaluate, tmp_path):
    (tmp_path / "settings.yaml").write_text("temprature: 0.5\n")
    with pytest.raises(ValueError, match="temprature"):
        evaluate(config=tmp_path / "settings.yaml")


def test_a_missing_dataset_column_is_named(evaluate, dataset):
    dataset.write_text(json.dumps({"question": "2 + 3?", "result": "5"}) + "\n")
    with pytest.raises(ValueError, match=r"answer"):
        evaluate()


def test_a_missing_dataset_file_is_named(evaluate, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        evaluate(dataset_name_or_path=tmp_path / "nowhere.jsonl")


def test_a_missing_model_folder_is_named(evaluate, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        evaluate(model_name_or_path=tmp_path / "nowhere")


def test_a_truncated_weight_file_is_named(evaluate, plain_checkpoint, tmp_path):
    path = shutil.copytree(plain_checkpoint, tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"damaged: model\.safetensors .*Copy or download it again"):
        evaluate(model_name_or_path=path)


def test_a_failed_start_can_be_repeated_in_the_same_folder(evaluate, tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluate(model_name_or_path=tmp_path / "nowhere")
    evaluate()


@pytest.mark.parametrize("option, value", [("graders", "strictt"), ("batch_size", 0), ("temperature", 0.0)])
def test_a_setting_out_of_its_range_is_named_with_its_value(evaluate, option, value):
    with pytest.raises(ValueError, match=rf"`{option}`.*{value}"):
        evaluate(**{"num_samples": 2, option: value})


def test_prompts_are_rendered_as_in_training_unless_told_otherwise(evaluate, plain_checkpoint, tmp_path):
    path = shutil.copytree(plain_checkpoint, tmp_path / "trained")
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[-1].content }}{{ '' if enable_thinking else '<think></think>' }}"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    training = {"training": {"chat_template_kwargs": {"enable_thinking": True}}}
    (path / "run.json").write_text(json.dumps({"status": "finished", "configs": training}))
    for output, options, ending in (
        ("trained-with", {}, "many?"),
        ("none", {"chat_template_kwargs": "{}"}, "many?<think></think>"),
    ):
        folder = evaluate(output, model_name_or_path=path, max_samples=1, graders="strict", **options)
        assert rows(folder, "greedy")[0]["prompt"].endswith(ending)
    assert json.loads((folder / "settings.json").read_text())["chat_template_kwargs"] == {}


def test_another_task_is_graded_by_its_own_reward(evaluate, tmp_path):
    path = tmp_path / "arc.jsonl"
    path.write_text("".join(json.dumps(ARC | {"question": f"Which of {n}?"}) + "\n" for n in range(3)))
    metrics = json.loads((evaluate(task="arc_challenge", dataset_name_or_path=path) / "metrics.json").read_text())
    assert metrics["greedy"]["graders"].keys() == {"strict"}


def test_a_whole_test_set_leaves_a_result_for_the_hub_in_the_folders(
    evaluate, plain_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setitem(BENCHMARKS, "gsm8k", dataclasses.replace(BENCHMARKS["gsm8k"], problems=len(PROBLEMS)))
    model = shutil.copytree(plain_checkpoint, tmp_path / "model")
    out = evaluate(model_name_or_path=model, update_eval_results=True, graders="strict")
    written = [(folder / ".eval_results" / "gsm8k.yaml").read_text() for folder in (out, model)]
    assert written[0] == written[1] and "openai/gsm8k" in written[0]
    assert "problems from a local" in " ".join(written[0].split())
