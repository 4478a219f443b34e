import copy
import logging

import pytest
import torch
from hostile_generation import make_hostile
from transformers import AutoModelForCausalLM

from hf_evidenceflow import GenerateThinkingOutput
from hf_evidenceflow.evaluation.completion_log import CompletionLog, claim_folder, read_jsonl
from hf_evidenceflow.evaluation.completions import generate_completions, plan_batches, weights_fingerprint


PROMPTS = ["a b c d e f g", "2 + 3 = ?", "what", "how many eggs", "x y z 9"]


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    # A tiny model's threads wait for each other more than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(plain_checkpoint):
    return AutoModelForCausalLM.from_pretrained(plain_checkpoint)


@pytest.fixture
def complete(model, tokenizer):
    def complete(prompts=PROMPTS, **kwargs):
        settings = {"max_new_tokens": 7, "batch_size": 3} | kwargs
        return [item for batch in generate_completions(model, tokenizer, prompts, **settings) for item in batch]

    return complete


def texts(completions):
    return {(item.index, item.sample): item.text for item in completions}


def test_plan_covers_each_sample_once_and_starts_with_the_longest():
    plan = plan_batches([2, 7, 5], batch_size=4, num_samples=3)
    assert [len(batch) for batch in plan] == [4, 4, 1]
    assert [index for batch in plan for index, _ in batch] == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert sorted(item for batch in plan for item in batch) == [(i, s) for i in range(3) for s in range(3)]


def test_a_batch_gives_what_single_prompts_give(complete):
    assert texts(complete(batch_size=5)) == texts(complete(batch_size=1))


def test_completions_belong_to_their_prompts(complete):
    assert {item.index: item.prompt for item in complete()} == dict(enumerate(PROMPTS))


def test_starting_later_gives_the_rest_of_the_same_samples(complete):
    settings = {"do_sample": True, "num_samples": 2, "seed": 5}
    assert texts(complete(start_batch=2, **settings)).items() <= texts(complete(**settings)).items()


def test_samples_follow_the_seed(complete):
    first, again, other = (texts(complete(do_sample=True, num_samples=3, seed=seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_batches_do_not_share_their_random_numbers(complete):
    samples = complete(["what"], do_sample=True, num_samples=6, batch_size=3)
    assert [item.text for item in samples[:3]] != [item.text for item in samples[3:]]


def test_global_random_state_and_mode_are_left_alone(model, complete):
    before = torch.random.get_rng_state()
    model.train()
    try:
        complete(do_sample=True)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_length_counts_the_end_token_but_not_the_padding(complete, model, tokenizer, monkeypatch):
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def generate(input_ids, **_):
        completions = torch.tensor([[9, end, pad], [9, 9, 9]])
        sequences = torch.cat([input_ids, completions], dim=1)
        return GenerateThinkingOutput(sequences=sequences, thinking_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))

    monkeypatch.setattr(model, "generate", generate)
    short, long = complete(["what", "how"])
    assert (short.completion_tokens, short.finished, short.thinking_tokens) == (2, True, 2)
    assert (long.completion_tokens, long.finished, long.thinking_tokens) == (3, False, 2)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_nothing_of_the_checkpoints_generation_config_slips_in(model, complete, monkeypatch, settings):
    before = texts(complete(**settings))
    monkeypatch.setattr(model, "generation_config", copy.deepcopy(model.generation_config))
    make_hostile(model)
    assert texts(complete(**settings)) == before


def test_several_greedy_samples_are_an_error(complete):
    with pytest.raises(ValueError, match=r"`num_samples=3` greedy"):
        complete(num_samples=3)


def test_no_prompts_are_an_error(complete):
    with pytest.raises(ValueError, match="no prompts"):
        complete([])


def test_fingerprint_changes_with_one_trained_tensor(model):
    trained = copy.deepcopy(model)
    assert weights_fingerprint(trained) == weights_fingerprint(model)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert weights_fingerprint(trained) != weights_fingerprint(model)


PLAN = [[(1, 0), (1, 1)], [(0, 0), (0, 1)]]


def rows(*items):
    return [{"id": index, "sample": sample, "completion": "a\u2028b"} for index, sample in items]


def test_rows_of_a_cut_batch_are_dropped(tmp_path, caplog):
    log = CompletionLog(tmp_path / "x.jsonl", PLAN)
    log.append(rows(*PLAN[0]))
    log.append(rows(*PLAN[1]))
    log.path.write_bytes(log.path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        again = CompletionLog(log.path, PLAN)
    assert (again.batches_done, again.rows) == (1, rows(*PLAN[0]))
    assert read_jsonl(log.path) == rows(*PLAN[0])
    assert "line 4 is not whole" in caplog.text


def test_rows_in_another_order_than_planned_are_made_again(tmp_path):
    CompletionLog(tmp_path / "x.jsonl", PLAN).append(rows(*PLAN[1]))
    assert CompletionLog(tmp_path / "x.jsonl", PLAN).batches_done == 0


def test_a_differing_setting_is_named_with_both_values(tmp_path):
    claim_folder(tmp_path, {"seed": 1, "top_k": 0})
    (tmp_path / "greedy.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"`seed` was 1 and is now 2\. Choose"):
        claim_folder(tmp_path, {"seed": 2, "top_k": 0})


def test_settings_can_change_before_the_first_completion(tmp_path):
    claim_folder(tmp_path, {"model": "misspelt"})
    claim_folder(tmp_path, {"model": "right"})
    (tmp_path / "greedy.jsonl").write_text("{}\n")
    claim_folder(tmp_path, {"model": "right"})
    assert "right" in (tmp_path / "settings.json").read_text()


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not empty \(run\.json\).*another `output_dir`"):
        claim_folder(tmp_path, {"seed": 1})
