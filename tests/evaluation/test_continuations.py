import pytest
import torch
from hostile_generation import make_hostile
from transformers import AutoModelForCausalLM

from hf_evidenceflow.evaluation.continuations import (
    Continuation,
    continue_prompts,
    mean_repetition,
    repetition_measures,
    repetition_table,
)


PROMPTS = [[5, 9, 30], [11, 12, 13, 14, 15]]


@pytest.fixture(scope="module")
def model(plain_checkpoint):
    return AutoModelForCausalLM.from_pretrained(plain_checkpoint).eval()


def test_measures_of_a_hand_made_text():
    # 1 2 3 1 2 3 1: 3 of 7 tokens, 3 of 6 pairs and 3 of 5 triples differ; of 4 fours the last stood before
    assert repetition_measures([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(
        {"distinct_1": 3 / 7, "distinct_2": 3 / 6, "distinct_3": 3 / 5, "repeated_4": 1 / 4}
    )


def test_a_text_shorter_than_n_has_no_measure_of_n_grams():
    assert repetition_measures([4, 4]) == {
        "distinct_1": 0.5,
        "distinct_2": 1.0,
        "distinct_3": None,
        "repeated_4": None,
    }


def test_means_leave_out_texts_that_are_too_short():
    items = [
        Continuation(0, 0, "", len(ids), finished, repetition_measures(ids))
        for ids, finished in (([7, 7, 7, 7], True), ([7], False))
    ]
    means = mean_repetition(items)
    assert means["distinct_1"] == (0.25 + 1) / 2 and means["distinct_2"] == 1 / 3
    assert means["tokens"] == 2.5 and means["finished"] == 0.5
    assert repetition_table({"greedy": means})[2][0][0] == "greedy"


def test_greedy_continuations_are_those_of_generate(model, tokenizer):
    outputs = continue_prompts(model, tokenizer, PROMPTS, 12)
    for prompt, output in zip(PROMPTS, outputs):
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        ids = ids[: ids.index(1)] if 1 in ids else ids
        assert output.text == tokenizer.decode(ids, skip_special_tokens=True) and output.tokens == len(ids)


def test_a_seed_repeats_the_samples_and_another_does_not(model, tokenizer):
    def sample(seed):
        return continue_prompts(model, tokenizer, PROMPTS, 12, num_samples=2, seed=seed)

    first = sample(3)
    torch.manual_seed(99)  # the global state does not matter
    assert sample(3) == first and sample(4) != first
    assert first[0].text != first[1].text


def test_the_global_random_state_is_left_alone(model, tokenizer):
    before = torch.get_rng_state()
    continue_prompts(model, tokenizer, PROMPTS, 3, num_samples=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_ngram_stands_twice_with_no_repeat_ngram_size(model, tokenizer):
    plain = continue_prompts(model, tokenizer, PROMPTS, 40, num_samples=1, temperature=0.1)
    kept = continue_prompts(model, tokenizer, PROMPTS, 40, num_samples=1, temperature=0.1, no_repeat_ngram_size=2)
    assert min(item.repetition["distinct_2"] for item in plain) < 1
    assert all(item.repetition["distinct_2"] == 1 for item in kept)


def test_a_penalty_makes_more_tokens_differ(model, tokenizer):
    plain, penalised = (
        mean_repetition(continue_prompts(model, tokenizer, PROMPTS, 40, repetition_penalty=penalty))
        for penalty in (1.0, 3.0)
    )
    assert penalised["distinct_1"] > plain["distinct_1"]


def test_nothing_of_the_generation_config_slips_in(plain_checkpoint, model, tokenizer):
    other = make_hostile(AutoModelForCausalLM.from_pretrained(plain_checkpoint).eval())
    assert continue_prompts(other, tokenizer, PROMPTS, 20) == continue_prompts(model, tokenizer, PROMPTS, 20)


def test_a_prompt_without_tokens_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="Prompt 1 has no token"):
        continue_prompts(model, tokenizer, [[5], []], 3)
