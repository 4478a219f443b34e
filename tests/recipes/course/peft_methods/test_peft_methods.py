"""The compared methods: what they train, their batches, LoRA's merge, the tasks, and the recipe."""

import importlib.util
import json
from collections import Counter

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from repository import RECIPES
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.recipes.course.peft_methods.discrete_prompt import search_discrete_prompt
from hf_evidenceflow.recipes.course.peft_methods.lora_merge import merge_errors
from hf_evidenceflow.recipes.course.peft_methods.methods import parameter_counts, tuning_methods
from hf_evidenceflow.recipes.course.peft_methods.peft_report import method_table, summarise
from hf_evidenceflow.recipes.course.peft_methods.pretraining import pretrain_tiny_llama
from hf_evidenceflow.recipes.course.peft_methods.task import LabelledTask, cloze_task, gender_task, labelled_task
from hf_evidenceflow.recipes.course.peft_methods.tuning import (
    IGNORED,
    accuracy,
    batch_indices,
    check_labels,
    encode_rows,
    label_token,
    tune,
)
from hf_evidenceflow.recipes.course.shared.corpus import PEOPLE, generate_corpus


RECIPE = RECIPES / "course" / "peft_methods" / "run.py"
IDS = torch.arange(2, 22).view(2, 10)
D, LAYERS, KV = TINY["hidden_size"], TINY["num_hidden_layers"], 2 * 6  # two key and value heads of 24 / 4
VIRTUAL = 7
TEXT = "one is cold"


@pytest.fixture(scope="module")
def words_tokenizer():
    return train_text_tokenizer(generate_corpus(300), 700)


@pytest.fixture(scope="module")
def base(tmp_path_factory, words_tokenizer):
    """Folder of a tiny model with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY | {"vocab_size": len(words_tokenizer)})).save_pretrained(folder)
    words_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def methods(base):
    return tuning_methods(TEXT, base, virtual_tokens=VIRTUAL, lora_ranks=(2, 5), bottleneck=3)


def load(base) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(base).eval()


def prepared(methods, base, name):
    torch.manual_seed(1)
    return methods[name].prepare(load(base))


@pytest.fixture(scope="module")
def task():
    return gender_task(20, 6, seed=3)


ADAPTERS = (
    *("LoRA, rank 2", "LoRA, rank 5", "Houlsby adapter, 3", "prefix tuning, MLP", "P-tuning v2"),
    *("soft prompt, random", "soft prompt, vocabulary", "soft prompt, text", "P-tuning, MLP", "P-tuning, LSTM"),
)


# What each method trains


def lora(rank):
    # q: D to D, k and v: D to KV, o: D to D, gate and up: D to I, down: I to D
    inner = TINY["intermediate_size"]
    return LAYERS * rank * (2 * (D + D) + 2 * (D + KV) + 3 * (D + inner))


def lstm(inputs, hidden):
    # Four gates, two directions, and torch's two biases; the second layer reads both directions of the first
    return sum(2 * (4 * hidden * (size + hidden) + 8 * hidden) for size in (inputs, 2 * hidden))


EXPECTED = {
    "not tuned": 0,
    "LoRA, rank 2": lora(2),
    "LoRA, rank 5": lora(5),
    "Houlsby adapter, 3": 2 * LAYERS * (2 * D * 3 + 3 + D),
    # Keys and values of each layer
    "P-tuning v2": VIRTUAL * 2 * LAYERS * KV,
    # An embedding of the width of keys, an MLP as wide, and its way out to all keys and values
    "prefix tuning, MLP": VIRTUAL * KV + (KV * KV + KV) + (KV + 1) * 2 * LAYERS * KV,
    "soft prompt, random": VIRTUAL * D,
    "soft prompt, vocabulary": VIRTUAL * D,
    "soft prompt, text": VIRTUAL * D,
    "P-tuning, MLP": VIRTUAL * D + 3 * (D * D + D),
    "P-tuning, LSTM": VIRTUAL * D + lstm(D, D) + (2 * D * 2 * D + 2 * D) + (2 * D * D + D),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_method_trains_as_many_parameters_as_its_formula_says(name, methods, base):
    trained, everything = parameter_counts(prepared(methods, base, name))
    assert trained == EXPECTED[name]
    assert everything == sum(parameter.numel() for parameter in load(base).parameters())


def test_full_tuning_trains_all_and_the_head_alone_is_the_head(methods, base, words_tokenizer):
    trained, everything = parameter_counts(prepared(methods, base, "full"))
    assert trained == everything
    trained, everything = parameter_counts(prepared(methods, base, "head only"))
    assert trained == len(words_tokenizer) * D


def test_a_tied_head_is_tuned_without_the_embeddings(methods):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True))
    embeddings = model.get_input_embeddings().weight
    model = methods["head only"].prepare(model)
    assert not embeddings.requires_grad and model.lm_head.weight.requires_grad
    assert torch.equal(embeddings, model.lm_head.weight)


def test_a_text_prompt_starts_at_the_embeddings_of_its_text(methods, base, words_tokenizer):
    model = prepared(methods, base, "soft prompt, text")
    ids = words_tokenizer(TEXT)["input_ids"]
    assert len(ids) < VIRTUAL
    expected = load(base).get_input_embeddings().weight[[ids[at % len(ids)] for at in range(VIRTUAL)]]
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, expected)


def test_a_vocabulary_prompt_starts_at_tokens_and_a_random_one_does_not(methods, base):
    embeddings = load(base).get_input_embeddings().weight
    for name, known in (("soft prompt, vocabulary", True), ("soft prompt, random", False)):
        prompt = prepared(methods, base, name).prompt_encoder["default"].embedding.weight
        assert [bool((embeddings == row).all(-1).any()) for row in prompt] == [known] * VIRTUAL


# Tuning


@pytest.mark.parametrize("name", ["full", "head only", *ADAPTERS])
def test_each_method_lowers_the_loss_and_leaves_the_rest_frozen(name, methods, base, words_tokenizer):
    rows = [{"text": "the king", "label": "french"}, {"text": "a dog has a bone", "label": "cold"}]
    task = LabelledTask("two rows", rows, {"test": rows}, "{text} is")
    model = prepared(methods, base, name)
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    losses = tune(model, task, words_tokenizer, 0.1, steps=20, batch_size=2)["losses"]
    assert losses[-1] < losses[0] - 0.02
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in frozen.items())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_method_gives_the_same_logits_in_a_new_model(name, methods, base, task, words_tokenizer, tmp_path):
    model = prepared(methods, base, name)
    tune(model, task, words_tokenizer, 0.05, steps=2, batch_size=3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load(base), tmp_path).eval()
    with torch.no_grad():
        expected, logits = model.eval()(input_ids=IDS).logits, loaded(input_ids=IDS).logits
        plain = load(base)(input_ids=IDS).logits
    # The MLP or LSTM of a prompt is not saved but its outcome, which was computed for a batch of another size
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected[:, -10:] - plain).abs().max() > 1e-3


def test_every_method_gets_the_same_batches(methods, base, task, words_tokenizer, monkeypatch):
    seen = {}
    for name in ("full", "LoRA, rank 2", "P-tuning v2", "soft prompt, random"):
        model, batches = prepared(methods, base, name), []
        model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=batches: seen.append(kwargs["input_ids"]), with_kwargs=True
        )
        torch.rand(len(seen))  # what was drawn before is not to matter
        tune(model, task, words_tokenizer, 1e-3, steps=3, batch_size=7, seed=2)
        seen[name] = batches
    reference = seen.pop("full")
    assert len(reference) == 3
    for batches in seen.values():
        assert all(torch.equal(one, other) for one, other in zip(reference, batches, strict=True))


def test_batches_go_through_all_rows_before_they_repeat_one():
    batches = list(batch_indices(11, 5, 3, seed=0))
    assert [len(batch) for batch in batches] == [3] * 5
    drawn = [row for batch in batches for row in batch]
    assert Counter(drawn[:11]) == Counter(range(11)) and drawn[:11] != sorted(drawn[:11])
    assert list(batch_indices(11, 5, 3, seed=0)) == batches != list(batch_indices(11, 5, 3, seed=1))


def test_rows_are_padded_on_the_right_and_only_the_label_has_a_loss(words_tokenizer):
    rows = [{"text": "the king", "label": "french"}, {"text": "the dog has a dog", "label": "cold"}]
    batch = encode_rows(rows, "{text} is", words_tokenizer)
    for row, ids, mask, labels in zip(rows, *(batch[key] for key in ("input_ids", "attention_mask", "labels"))):
        prompt = words_tokenizer(f"{row['text']} is")["input_ids"]
        token = words_tokenizer(f" {row['label']}")["input_ids"][0]
        assert ids[mask.bool()].tolist() == [*prompt, token]
        assert labels.tolist() == [IGNORED] * len(prompt) + [token] + [IGNORED] * (len(ids) - len(prompt) - 1)
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


@pytest.mark.parametrize("name", ["not tuned", "LoRA, rank 2", "P-tuning v2", "soft prompt, random"])
def test_accuracy_is_that_of_one_row_at_a_time_without_padding(name, methods, base, task, words_tokenizer):
    model = prepared(methods, base, name)
    rows = [dict(row) for row in task.train]
    tune(model, task, words_tokenizer, 0.03, steps=3, batch_size=5) if name != "not tuned" else None
    model.eval()
    predicted = []
    for row in rows:
        ids = torch.tensor([words_tokenizer(task.template.format(text=row["text"]))["input_ids"]])
        with torch.no_grad():
            # peft asks for a mask when it has virtual tokens
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        predicted.append(logits[0, -1].argmax().item())
    # Half of the rows get the predicted token as their label, so that the accuracy is neither 0 nor 1
    tokens = {}
    for index, row in enumerate(rows):
        tokens[f"{index}"] = predicted[index] if index % 2 else predicted[index] + 1
        row["label"] = f"{index}"
    encoded = accuracy_with_tokens(model, rows, task.template, words_tokenizer, tokens)
    assert encoded == pytest.approx(0.5)


def accuracy_with_tokens(model, rows, template, tokenizer, tokens):
    from hf_evidenceflow.recipes.course.peft_methods import tuning

    original = tuning.label_token
    tuning.label_token = lambda tokenizer, label: tokens[label]
    try:
        return accuracy(model, rows, template, tokenizer, batch_size=7)
    finally:
        tuning.label_token = original


def test_labels_with_the_same_first_token_are_refused_by_name(words_tokenizer):
    check_labels(words_tokenizer, ["french", "cold"])
    assert label_token(words_tokenizer, "french") != label_token(words_tokenizer, "cold")
    with pytest.raises(ValueError, match="'cold' and 'cold day' begin with the same token"):
        check_labels(words_tokenizer, ["french", "cold", "cold day"])


# LoRA's merge


def tuned_lora(base, task, tokenizer):
    torch.manual_seed(1)
    model = get_peft_model(load(base), LoraConfig(r=3, lora_alpha=7, target_modules="all-linear"))
    tune(model, task, tokenizer, 0.02, steps=5, batch_size=7)
    return model.eval()


def test_a_merged_lora_is_the_weight_plus_the_scaled_product(base, task, words_tokenizer):
    model = tuned_lora(base, task, words_tokenizer)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 7 / 3 * up @ down
    model.merge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, expected)
    assert (7 / 3 * up @ down).abs().max() > 1e-3


def test_merging_in_float32_changes_logits_and_weights_by_rounding_only(base, task, words_tokenizer):
    model = tuned_lora(base, task, words_tokenizer)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    errors = merge_errors(model, IDS)
    # Weights and logits are below 1 or near it, where a float32 is within 6e-8; a few hundred of them are summed
    assert errors["logits"] < 1e-5 and errors["weights"] < 1e-6 and errors["changed"] == 0
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_merging_in_bfloat16_costs_more_than_in_float32(base, task, words_tokenizer):
    model = tuned_lora(base, task, words_tokenizer)
    single, half = (merge_errors(model, IDS, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half["logits"] > 100 * single["logits"] and half["weights"] > 100 * single["weights"]


def test_a_model_without_a_lora_or_with_a_merged_one_is_refused(base, methods, task, words_tokenizer):
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_errors(load(base), IDS)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_errors(prepared(methods, base, "Houlsby adapter, 3"), IDS)
    model = tuned_lora(base, task, words_tokenizer)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged already"):
        merge_errors(model, IDS)


# Tasks


def test_no_text_gives_its_answer_away_or_is_in_two_splits():
    task = gender_task(200, 50, seed=1)
    splits = {"train": task.train, **task.tests}
    assert [len(rows) for rows in splits.values()] == [200, 50, 50]
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
    telling = {"man", "woman", "he", "she", "his", "her", "him"}
    assert not any(telling & set(text.split()) for text in texts)
    for rows in splits.values():
        assert Counter(row["label"] for row in rows) == {"man": len(rows) // 2, "woman": len(rows) // 2}


def test_the_answer_is_the_gender_of_the_person():
    for rows in (gender_task(200, 50).train, *gender_task(200, 50).tests.values()):
        for row in rows:
            (place,) = [pair.index(word) for pair in PEOPLE for word in pair if word in row["text"].split()]
            assert row["label"] == ("man", "woman")[place]


def test_the_new_words_are_in_no_row_of_the_tuning():
    people = {word for pair in PEOPLE for word in pair}
    task = gender_task(300, 200, seed=2)
    found = {
        name: {word for row in rows for word in row["text"].split() if word in people}
        for name, rows in {"train": task.train, **task.tests}.items()
    }
    assert not found["train"] & found["new words"] and found["new texts"] <= found["train"]
    assert len(found["train"]) == 12 and len(found["new words"]) == 6


def test_another_seed_splits_the_sentences_otherwise():
    first, again, other = (gender_task(100, 50, seed=seed).train for seed in (1, 1, 2))
    assert first == again != other


def test_a_cloze_has_its_answer_in_the_gap():
    documents = generate_corpus(200)
    words = " ".join(documents).split()
    joined = " ".join(words)
    task = cloze_task(documents, 100, 20)
    assert len(task.train) == 100 and len(task.tests["new texts"]) == 20 and len(task.labels) <= 8
    for row in task.train:
        assert row["text"].replace("_", row["label"]) in joined
    assert not {row["text"] for row in task.train} & {row["text"] for row in task.tests["new texts"]}


def test_rows_of_ones_own_become_a_task():
    rows = [{"review": f"film {number}", "stars": number % 3} for number in range(10)]
    task = labelled_task([*rows, rows[0]], "review", "stars", "{text} :", test_share=0.3)
    assert len(task.train) == 7 and len(task.tests["new texts"]) == 3
    assert task.labels == ["0", "1", "2"]
    assert all(row["label"] == str(int(row["text"].split()[1]) % 3) for row in task.train)


def test_what_is_wrong_with_a_task_is_named():
    rows = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]
    with pytest.raises(ValueError, match="`template` must have {text} in it, got 'x'"):
        LabelledTask("", rows, {"test": rows}, "x")
    with pytest.raises(ValueError, match="'test' rows of the task are empty"):
        LabelledTask("", rows, {"test": []}, "{text}")
    with pytest.raises(ValueError, match=r"two different labels at least, got \['b'\]"):
        LabelledTask("", rows[:1], {"test": rows[:1]}, "{text}")
    with pytest.raises(ValueError, match="2 of 2 rows have no 'stars'"):
        labelled_task(rows, "text", "stars", "{text}")


def test_a_text_shorter_than_a_block_is_refused(words_tokenizer):
    with pytest.raises(ValueError, match="fewer than a block of 64"):
        pretrain_tiny_llama(["the king ."], words_tokenizer, steps=1)


# Report and recipe


def measured(trained, seconds, value):
    return {"trained": trained, "share": trained / 1000, "seconds": seconds, "accuracy": {"new texts": value}}


def test_the_table_has_the_means_with_their_t_intervals():
    runs = {
        "one": [measured(5, 1.0, 0.5), measured(5, 2.0, 0.6), measured(5, 6.0, 0.7)],
        "two": [measured(7, 1, 0.25)],
    }
    summary = summarise(runs)
    # Student's t with 2 degrees of freedom: 4.303 times 0.1 over the root of 3
    assert summary["one"]["accuracy"]["new texts"]["low"] == pytest.approx(0.6 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    lines = method_table(summary).splitlines()
    assert lines[2] == "| one | 5 | 0.50 % | 0.60 [0.35, 0.85] | 3.0 |"
    assert lines[3] == "| two | 7 | 0.70 % | 0.25 | 1.0 |"


def test_an_interval_does_not_leave_the_range_of_an_accuracy():
    accuracy = summarise({"one": [measured(5, 1, 1.0), measured(5, 1, 0.8)]})["one"]["accuracy"]["new texts"]
    assert (accuracy["low"], accuracy["high"]) == (0.0, 1.0)


def test_a_discrete_prompt_is_measured_where_prompt_tuning_puts_its_tokens(base, task, words_tokenizer):
    model = load(base)
    text, found = search_discrete_prompt(model, task, words_tokenizer, length=3, budget=60, items=5, seed=1)
    _, first = search_discrete_prompt(model, task, words_tokenizer, length=3, budget=1, items=5, seed=1)
    assert found["loss"] < first["loss"] and (found["trained"], found["share"]) == (0, 0.0)
    # The loss of the same rows, with the prompt before each and the label behind it
    losses = []
    for row in task.train[:5]:
        ids = words_tokenizer(text)["input_ids"] + words_tokenizer(task.template.format(text=row["text"]))["input_ids"]
        logps = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        losses.append(-logps[label_token(words_tokenizer, row["label"])].item())
    assert found["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert set(found["accuracy"]) == set(task.tests)


def recipe_module():
    spec = importlib.util.spec_from_file_location("peft_methods", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def test_labels_of_ones_own_need_rows_and_a_model():
    with pytest.raises(ValueError, match=r"`label_column` \('stars'\) needs a `dataset_name`.*got None and None"):
        recipe_module().PeftMethodsArguments(label_column="stars")


def test_methods_are_chosen_by_parts_of_their_names_and_a_wrong_one_is_named():
    recipe = recipe_module()
    arguments = recipe.PeftMethodsArguments(methods=["lora", "soft prompt, T"])
    assert list(recipe.choose_methods(arguments, "base")) == ["LoRA, rank 1", "LoRA, rank 8", "soft prompt, text"]
    with pytest.raises(ValueError, match="'lorra', which is no part of any of: not tuned; head only"):
        recipe.choose_methods(recipe.PeftMethodsArguments(methods=["lorra"]), "base")


@pytest.mark.slow
def test_the_recipe_compares_all_methods_and_saves_them(tmp_path):
    metrics = recipe_module().main(
        [
            *("--output_dir", str(tmp_path), "--max_documents", "300", "--vocab_size", "500", "--train_rows", "40"),
            *("--test_rows", "20", "--pretraining_steps", "10", "--steps", "12", "--batch_size", "8", "--seeds", "2"),
            *("--virtual_tokens", "3", "--lora_ranks", "2", "--bottleneck", "5"),
            *("--search_budget", "40"),
        ]
    )
    methods = metrics["methods"]
    assert len(methods) == 14 and [row["alpha"] for row in metrics["lora"]] == [2, 16]
    # Two answers, each right for half of the rows: what has learned to give one of them is right in half
    assert methods["full"]["accuracy"]["new texts"]["value"] >= 0.4
    assert methods["not tuned"]["trained"] == 0 and methods["full"]["share"] == 1
    for file in ("peft_methods.md", "peft_methods.png", "metrics.json", "run.json", "full/model.safetensors"):
        assert (tmp_path / file).exists(), file
    for adapter in ("LoRA-rank_2", "Houlsby_adapter-5", "P-tuning_v2", "soft_prompt-text", "P-tuning-LSTM"):
        config = PeftConfig.from_pretrained(tmp_path / adapter)
        assert config.base_model_name_or_path == str(tmp_path / "base")
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / adapter)
        assert loaded.peft_config["default"].peft_type == config.peft_type
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
