"""The GCG step and search, the objective with its gradient, the allowed tokens, the tasks, and the recipe."""

import importlib.util
import itertools
import json
import math

import pytest
import torch
from repository import RECIPES
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.recipes.course.prompt_search.gcg import (
    GRADIENT_COST,
    gcg_step,
    one_hot_gradient,
    sample_replacements,
    search_prompt,
    top_candidates,
)
from hf_evidenceflow.recipes.course.prompt_search.objective import Item, PromptObjective
from hf_evidenceflow.recipes.course.prompt_search.prompt_tokens import allowed_tokens, random_prompt, round_trip
from hf_evidenceflow.recipes.course.prompt_search.tasks import TASKS, encode_questions, split_by_group


RECIPE = RECIPES / "course" / "prompt_search" / "run.py"
VOCAB = 23
ITEMS = [
    *(Item([3, 4, 5], [6]), Item([7], [8, 9]), Item([10, 11], [12])),
    *(Item([2], [14, 1], [15]), Item([], [16], [17, 18])),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, num_key_value_heads=1, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def objective(model):
    return PromptObjective(model, ITEMS, rows_at_once=7)


@pytest.fixture
def everything():
    return torch.ones(VOCAB, dtype=torch.bool)


def slow_loss(model, prompt):
    """The loss in plain loops, an item and a token at a time."""
    total = 0.0
    for query, answer, between in ITEMS:
        for index, token in enumerate(answer):
            ids = torch.tensor([[*query, *prompt, *between, *answer[:index]]])
            total -= model(ids).logits[0, -1].log_softmax(-1)[token].item()
    return total / len(ITEMS)


class Counted:
    """Counts the prompts that a loss was asked for, and the gradients."""

    def __init__(self, objective):
        self.objective, self.prompts, self.gradients = objective, [], 0

    def losses(self, prompts):
        self.prompts.extend(map(tuple, prompts.tolist()))
        return self.objective.losses(prompts)

    def gradient(self, prompt):
        self.gradients += 1
        return self.objective.gradient(prompt)


# Objective


def test_the_losses_of_many_prompts_are_those_of_plain_loops(objective, model):
    for length in (0, 1, 4):
        prompts = torch.randint(VOCAB, (5, length), generator=torch.Generator().manual_seed(length))
        expected = [slow_loss(model, prompt.tolist()) for prompt in prompts]
        assert objective.losses(prompts).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_that_of_the_embeddings_times_the_embedding_matrix(objective, model):
    prompt = torch.tensor([13, 2, 20, 5])
    weight = model.get_input_embeddings().weight
    total = torch.zeros(4, weight.shape[1])
    for query, answer, between in ITEMS:
        tokens = torch.tensor([*query, *prompt.tolist(), *between, *answer])
        embedded = weight[tokens].detach().clone().requires_grad_()
        logps = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
        start = len(query) + 4 + len(between)
        loss = -sum(logps[start + index - 1, token] for index, token in enumerate(answer)) / len(ITEMS)
        total += torch.autograd.grad(loss, embedded)[0][len(query) : len(query) + 4]
    torch.testing.assert_close(objective.gradient(prompt), total @ weight.T, atol=1e-5, rtol=1e-4)


def test_on_a_linear_loss_the_gradient_is_the_change_by_each_replacement():
    weights = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor([4, 4, 9])
    gradient = one_hot_gradient(lambda one_hot: (weights * one_hot).sum(), prompt, VOCAB)

    def loss(prompt):
        return sum(weights[place, token] for place, token in enumerate(prompt.tolist()))

    for place, token in itertools.product(range(3), range(VOCAB)):
        replaced = prompt.clone()
        replaced[place] = token
        change = gradient[place, token] - gradient[place, prompt[place]]
        assert change.item() == pytest.approx((loss(replaced) - loss(prompt)).item(), abs=1e-5)


def test_an_answer_is_right_only_if_all_its_tokens_are_the_most_probable(model):
    prompt = [13, 2]
    first = int(model(torch.tensor([[7, *prompt]])).logits[0, -1].argmax())
    second = int(model(torch.tensor([[7, *prompt, first]])).logits[0, -1].argmax())
    answers = ([first, second], [first], [first, (second + 1) % VOCAB], [(first + 1) % VOCAB, second])
    objective = PromptObjective(model, [Item([7], answer) for answer in answers])
    assert objective.right(torch.tensor(prompt)) == [True, True, False, False]


def test_items_without_an_answer_or_anything_before_it_are_refused(model):
    with pytest.raises(ValueError, match="no items"):
        PromptObjective(model, [])
    for item in (Item([], [3]), Item([3], [])):
        with pytest.raises(ValueError, match="1 token or more"):
            PromptObjective(model, [item])


# Step


def test_candidates_are_the_allowed_tokens_of_lowest_gradient_and_never_the_present_one(everything):
    gradient = torch.arange(3 * 5.0).view(3, 5).neg()
    gradient[1] = gradient[1].flip(0)
    allowed = torch.tensor([True, True, False, True, True])
    candidates = top_candidates(gradient, torch.tensor([4, 0, 1]), allowed, k=2)
    assert [tokens.tolist() for tokens in candidates] == [[3, 1], [1, 3], [4, 3]]
    everyone = top_candidates(gradient, torch.tensor([4, 0, 1]), allowed, k=99)
    assert [sorted(tokens.tolist()) for tokens in everyone] == [[0, 1, 3], [1, 3, 4], [0, 3, 4]]


def test_replacements_are_different_prompts_that_differ_in_one_token():
    prompt = torch.tensor([1, 2, 3])
    candidates = [torch.tensor([5, 6]), torch.tensor([7]), torch.tensor([8, 9, 10])]
    generator = torch.Generator().manual_seed(0)
    drawn = sample_replacements(prompt, candidates, 4, generator)
    assert drawn.shape == (4, 3) and len({tuple(row) for row in drawn.tolist()}) == 4
    assert ((drawn != prompt).sum(1) == 1).all()
    assert len(sample_replacements(prompt, candidates, 100, generator)) == 6
    odd = sample_replacements(prompt, candidates, 100, generator, keep=lambda row: int(row.sum()) % 2 == 1)
    assert sorted(odd.sum(1).tolist()) == [11, 11, 11, 13]
    assert sample_replacements(prompt, candidates, 9, generator, keep=lambda row: False).shape == (0, 3)


def test_with_all_tokens_as_candidates_a_step_finds_the_best_single_replacement(objective, everything):
    prompt = torch.tensor([13, 2, 20])
    every = []
    for place, token in itertools.product(range(3), range(VOCAB)):
        replaced = prompt.clone()
        replaced[place] = token
        every.append(replaced)
    losses = objective.losses(torch.stack(every))
    loss, gradient = float(objective.losses(prompt[None])[0]), objective.gradient(prompt)
    generator = torch.Generator().manual_seed(0)
    found, best, used = gcg_step(prompt, loss, gradient, objective.losses, everything, VOCAB, 999, generator)
    assert used == 3 * (VOCAB - 1)
    assert best == pytest.approx(losses.min().item(), abs=1e-5)
    assert found.tolist() == every[int(losses.argmin())].tolist()


def test_a_step_stays_where_every_replacement_is_worse(everything):
    prompt = torch.tensor([0, 0])
    generator = torch.Generator().manual_seed(0)
    step = gcg_step(prompt, 0.0, torch.zeros(2, VOCAB), lambda rows: rows.sum(1).float(), everything, 9, 5, generator)
    assert step[0].tolist() == [0, 0] and step[1:] == (0.0, 5)


# Search


@pytest.mark.parametrize("budget", [1, 3, 4, 5, 11, 12, 60, 61])
@pytest.mark.parametrize("guided", [True, False])
def test_a_search_spends_its_budget_to_the_evaluation_and_never_gets_worse(objective, everything, budget, guided):
    counted = Counted(objective)
    gradient = counted.gradient if guided else None
    start = torch.tensor([13, 2, 20])
    result = search_prompt(start, counted.losses, gradient, everything, budget, k=9, batch=7)
    spent = len(counted.prompts) + GRADIENT_COST * counted.gradients
    assert result.evaluations == spent <= budget
    # Up to a gradient's cost after the first prompt buys nothing
    assert spent == budget or (guided and budget - 1 <= GRADIENT_COST)
    losses = [loss for _, loss in result.history]
    assert losses == sorted(losses, reverse=True) and result.history[-1] == (spent, result.loss)
    assert result.loss == pytest.approx(float(objective.losses(result.prompt[None])[0]), abs=1e-5)
    if budget >= 60:
        assert result.loss < losses[0]


def test_with_a_gradient_the_same_budget_goes_further_on_a_linear_loss():
    weights = torch.randn(4, 200, generator=torch.Generator().manual_seed(1))
    allowed, start = torch.ones(200, dtype=torch.bool), torch.tensor([1, 2, 3, 4])

    def losses(prompts):
        return weights[torch.arange(4), prompts].sum(1)

    guided = search_prompt(start, losses, lambda prompt: weights, allowed, budget=100, k=1, batch=4)
    blind = search_prompt(start, losses, None, allowed, budget=100, batch=4)
    assert guided.loss == pytest.approx(weights.min(1).values.sum().item())
    assert guided.loss < blind.loss


def test_forbidden_tokens_and_refused_prompts_are_never_evaluated(objective):
    allowed = torch.arange(VOCAB) % 2 == 0

    def keep(prompt):
        return int(prompt[0]) != int(prompt[1])

    for gradient in (objective.gradient, None):
        counted = Counted(objective)
        search_prompt(torch.tensor([2, 4, 4]), counted.losses, gradient, allowed, 90, k=99, batch=20, keep=keep)
        assert len(counted.prompts) > 50
        assert all(token % 2 == 0 for prompt in counted.prompts for token in prompt)
        assert all(prompt[0] != prompt[1] for prompt in counted.prompts)


def test_the_same_seed_finds_the_same_prompt_by_the_same_way(objective, everything):
    first, again, other = (
        search_prompt(torch.tensor([1, 2]), objective.losses, objective.gradient, everything, 40, 9, 5, seed)
        for seed in (3, 3, 4)
    )
    assert first.history == again.history and first.prompt.tolist() == again.prompt.tolist()
    assert first.history != other.history


def test_bad_settings_are_refused(objective, everything):
    start, losses = torch.tensor([1, 2]), objective.losses
    with pytest.raises(ValueError, match="got 0 and 5"):
        search_prompt(start, losses, None, everything, budget=0, batch=5)
    with pytest.raises(ValueError, match=r"not allowed: \[2\]"):
        search_prompt(start, losses, None, torch.arange(VOCAB) < 2, budget=5)
    with pytest.raises(ValueError, match=r"\[1, 2\], is refused"):
        search_prompt(start, losses, None, everything, budget=5, keep=lambda prompt: False)
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        search_prompt(start[:0], losses, None, everything, budget=5)
    with pytest.raises(ValueError, match="k=0"):
        search_prompt(start, losses, objective.gradient, everything, budget=9, k=0)


# Tokens and tasks


@pytest.fixture(scope="module")
def text_tokenizer():
    return train_text_tokenizer(["the people speak french . the people of paris are french ."] * 9, vocab_size=300)


def test_only_whole_printable_tokens_that_are_not_special_are_allowed(text_tokenizer):
    allowed = allowed_tokens(text_tokenizer, len(text_tokenizer) + 5)
    assert allowed.shape == (len(text_tokenizer) + 5,) and not allowed[len(text_tokenizer) :].any()
    assert not allowed[text_tokenizer.all_special_ids].any()
    texts = [text_tokenizer.decode([token]) for token in allowed.nonzero().flatten().tolist()]
    assert all(" " <= letter <= "~" for text in texts for letter in text)
    assert " french" in texts and "a" in texts
    wider = allowed_tokens(text_tokenizer, len(text_tokenizer), printable_ascii=False)
    assert int(wider.sum()) > int(allowed.sum())
    assert wider[text_tokenizer("\n")["input_ids"]].all()
    halves = text_tokenizer("é")["input_ids"]
    assert len(halves) == 2 and not wider[halves].any()


def test_a_prompt_that_would_be_read_as_other_tokens_is_refused(text_tokenizer):
    keep = round_trip(text_tokenizer)
    whole = torch.tensor(text_tokenizer(" french")["input_ids"])
    letters = torch.tensor([text_tokenizer.convert_tokens_to_ids(letter) for letter in "Ġfrench"])
    assert len(whole) == 1 and keep(whole) and not keep(letters)
    # Two halves of the word that are tokens of their own are fine alone, but not side by side
    halves = [text_tokenizer([" french"[:cut], " french"[cut:]])["input_ids"] for cut in range(1, 7)]
    first, second = next(pair for pair in halves if len(pair[0]) == len(pair[1]) == 1)
    assert keep(torch.tensor(first)) and keep(torch.tensor(second))
    assert not round_trip(text_tokenizer, before=first)(torch.tensor(second))
    assert not round_trip(text_tokenizer, after=second)(torch.tensor(first))


def test_random_prompts_are_of_allowed_tokens_and_kept_by_the_filter():
    allowed = torch.arange(VOCAB) > 17
    prompts = [random_prompt(allowed, 5, seed, keep=lambda prompt: int(prompt[0]) == 18) for seed in range(9)]
    assert all(len(prompt) == 5 and prompt.min() > 17 and prompt[0] == 18 for prompt in prompts)
    assert len({tuple(prompt.tolist()) for prompt in prompts}) > 1
    with pytest.raises(ValueError, match="1000 random prompts"):
        random_prompt(allowed, 5, 0, keep=lambda prompt: False)
    with pytest.raises(ValueError, match="got 0"):
        random_prompt(allowed, 0, 0)


def test_no_subject_is_on_both_sides_of_a_split():
    for questions, _ in TASKS.values():
        first, second = split_by_group(questions(), search=500, held_out=500, seed=1)
        assert {q.group for q in first}.isdisjoint(q.group for q in second)
        assert len(first) + len(second) == len(questions())
        assert {q.group for q in split_by_group(questions(), 500, 500, seed=2)[0]} != {q.group for q in first}
    assert [len(side) for side in split_by_group(TASKS["language"][0](), 24, 50, seed=0)] == [24, 50]
    with pytest.raises(ValueError, match="got 1 groups"):
        split_by_group(TASKS["gender"][0]()[:3], 2, 2, seed=0)


def test_query_and_answer_are_encoded_as_they_would_be_together(text_tokenizer):
    for questions, manual in TASKS.values():
        question = questions()[0]
        (item,) = encode_questions([question], text_tokenizer)
        between = text_tokenizer(manual)["input_ids"]
        text = question.query + manual + question.answer
        assert item.query + between + item.answer == text_tokenizer(text)["input_ids"]


# Recipe


def recipe_module():
    spec = importlib.util.spec_from_file_location("prompt_search", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def test_searches_are_chosen_by_parts_of_their_names_and_a_wrong_one_is_named():
    arguments = recipe_module().PromptSearchArguments
    assert arguments(methods=["gcg"]).methods == ["GCG"]
    with pytest.raises(ValueError, match="'GGC', which is no part of any of: random replacements; GCG"):
        arguments(methods=["GGC"])


@pytest.mark.slow
def test_the_recipe_searches_with_both_ways_and_writes_what_it_found(tmp_path):
    metrics = recipe_module().main(
        [
            *("--output_dir", str(tmp_path), "--max_documents", "300", "--steps", "30", "--vocab_size", "400"),
            *("--budget", "40", "--batch", "10", "--seeds", "2", "--search_items", "6", "--held_out_items", "8"),
        ]
    )
    losses = {name: [row["search_loss"] for row in rows] for name, rows in metrics["prompts"].items()}
    for name in ("GCG", "random replacements"):
        assert all(after < before for after, before in zip(losses[name], losses["random tokens"]))
        assert all(history[-1][0] == 40 for history in metrics["histories"][name])
    assert all(math.isfinite(row["loss"]) for rows in metrics["prompts"].values() for row in rows)
    assert "difference" in metrics
    for file in ("prompt_search.md", "prompt_search.png", "prompts.json", "model/model.safetensors"):
        assert (tmp_path / file).exists(), file
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
