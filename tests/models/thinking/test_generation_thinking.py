"""Hybrid generation through the stock `generate`, against teacher forcing and against the base model."""

import threading

import pytest
import torch
from tiny_models import TINY
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM, collect_thinking, load_thinking_model
from hf_evidenceflow.models.thinking import generation_thinking
from hf_evidenceflow.models.thinking.thinking_residual import embedding_state, soft_state
from hf_evidenceflow.models.thinking.thinking_sources import MAX_TAIL, TOKEN_CUT, sparse_soft_state
from hf_evidenceflow.models.thinking.thinking_state import ThinkingRecorder


MODES = ["projection", "embedding"]


def make_model(path, mode="projection", **fields):
    """A thinking model whose gates matter: at r_min .5 a wrong state changes the output visibly."""
    torch.manual_seed(7)
    fields = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6, **fields}
    model = load_thinking_model(path, thinking_mode=mode, **fields).eval()
    for gate in (model.model.thinking_residual_gate_r, model.model.thinking_residual_gate_i):
        torch.nn.init.normal_(gate.weight, std=0.3)
    return model


@pytest.fixture(params=MODES)
def model(request, plain_checkpoint):
    return make_model(plain_checkpoint, request.param)


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(["Tom has 3 apples.", "Ann?", "7+2="], return_tensors="pt", padding=True)


def generate(model, prompts, tokenizer, seed=0, **kwargs):
    torch.manual_seed(seed)
    kwargs = {
        "max_new_tokens": 11,
        "do_sample": True,
        "return_dict_in_generate": True,
        "output_logits": True,
        **kwargs,
    }
    return model.generate(**prompts, tokenizer=tokenizer, **kwargs)


def teacher_forced(model, prompts, output, **override):
    """Logits that produced each completion token, [B, C, V], from one pass with the recorded states."""
    count = output.thinking_mask.shape[1]
    ones = torch.ones(output.sequences.shape[0], count, dtype=torch.long)
    repeats = output.sequences.shape[0] // prompts.attention_mask.shape[0]
    mask = torch.cat([prompts.attention_mask.repeat_interleave(repeats, dim=0), ones], dim=1)
    inputs = {"thinking_states": output.thinking_states, "thinking_mask": output.thinking_mask, **override}
    with torch.no_grad():
        return model(output.sequences, attention_mask=mask, **inputs).logits[:, -count - 1 : -1]


def gap(model, prompts, output, **override):
    """Largest gap between the log-probabilities of the rollout and of teacher forcing, up to the end of each row."""
    rollout = torch.stack(output.logits, dim=1).log_softmax(-1)
    forced = teacher_forced(model, prompts, output, **override).log_softmax(-1)
    tokens = output.sequences[:, -rollout.shape[1] :]
    ended = (tokens == TINY["eos_token_id"]).cumsum(1) - (tokens == TINY["eos_token_id"]).long() > 0
    return ((rollout - forced).gather(2, tokens[..., None]).squeeze(2).abs() * ~ended).max().item()


# Invariant 1 and its mutations


def test_teacher_forcing_with_the_recorded_states_gives_the_rollouts_logps(model, prompts, tokenizer):
    output = generate(model, prompts, tokenizer)
    assert output.thinking_mask[:, :-1].float().mean() > 0.5
    assert gap(model, prompts, output) <= 1e-4


@pytest.mark.parametrize("mutation", ["shifted", "no mask", "no states", "other row"])
def test_parity_breaks_when(model, prompts, tokenizer, mutation):
    output = generate(model, prompts, tokenizer)
    override = {
        "shifted": {"thinking_states": output.thinking_states.roll(1, dims=1)},
        "no mask": {"thinking_mask": None},
        "no states": {"thinking_states": torch.zeros_like(output.thinking_states)},
        "other row": {"thinking_states": output.thinking_states.roll(1, dims=0)},
    }[mutation]
    assert gap(model, prompts, output, **override) > 1e-2


def test_projecting_before_recording_would_break_parity(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint)
    output = generate(model, prompts, tokenizer)
    with torch.no_grad():
        projected = model.model.thinking_projection(output.thinking_states)
    assert gap(model, prompts, output, thinking_states=projected) > 1e-2


def test_collected_logps_are_those_of_the_chosen_tokens_at_the_temperature(model, prompts, tokenizer):
    with collect_thinking(tokenizer, logps_temperature=0.7) as rollouts:
        output = generate(model, prompts, None, temperature=0.7, top_k=5)
    logps = (torch.stack(output.logits, dim=1) / 0.7).log_softmax(-1)
    tokens = output.sequences[:, -logps.shape[1] :]
    torch.testing.assert_close(rollouts[0].logps, logps.gather(2, tokens[..., None]).squeeze(2))


def test_the_collectors_watcher_sees_each_step(model, prompts, tokenizer):
    lengths = []

    def watcher(input_ids, scores, **kwargs):
        lengths.append(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with collect_thinking(tokenizer, watcher=watcher):
        output = generate(model, prompts, None)
    assert lengths == list(range(prompts.input_ids.shape[1] + 1, output.sequences.shape[1] + 1))


# What the states are


def test_embedding_states_come_from_the_processed_distribution(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint, "embedding")
    output = generate(model, prompts, tokenizer, temperature=0.6, top_k=4, output_scores=True)
    probs = torch.stack(output.scores, dim=1).softmax(-1)
    assert ((probs > 0).sum(-1) <= 4).all()
    embedding = model.get_input_embeddings().weight
    expected = torch.stack([embedding_state(probs[:, t], embedding) for t in range(probs.shape[1])], dim=1)
    mask = output.thinking_mask[..., None]
    torch.testing.assert_close(output.thinking_states * mask, expected * mask, rtol=0, atol=1e-5)


def test_projection_states_are_the_last_hidden_states_one_position_before(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint)
    output = generate(model, prompts, tokenizer)
    count = output.thinking_mask.shape[1]
    mask = torch.cat([prompts.attention_mask, torch.ones(3, count, dtype=torch.long)], dim=1)
    with torch.no_grad():
        hidden = model.model(
            output.sequences,
            attention_mask=mask,
            thinking_states=output.thinking_states,
            thinking_mask=output.thinking_mask,
        ).last_hidden_state[:, -count - 1 : -1]
    alive = output.thinking_mask[..., None]
    torch.testing.assert_close(output.thinking_states * alive, hidden * alive, rtol=0, atol=1e-4)


def test_embeds_ratio_is_the_mean_weight_of_fused_tokens_and_1_elsewhere(model, prompts, tokenizer):
    output = generate(model, prompts, tokenizer)
    embeds = model.get_input_embeddings()(output.sequences[:, -output.thinking_mask.shape[1] :])
    _, a, _ = model.model.fuse(embeds, output.thinking_states, output.thinking_mask)
    expected = torch.where(output.thinking_mask, a.mean(-1), 1.0)
    expected[:, -1] = 1  # never fed
    torch.testing.assert_close(output.embeds_ratio, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0, 15.0])
def test_sparse_soft_state_keeps_its_bound(scale):
    generator = torch.Generator().manual_seed(0)
    probs = (scale * torch.randn(5, 8000, generator=generator)).softmax(-1)
    probs[3] = torch.eye(8000)[17]
    embedding = torch.randn(8000, 13, generator=generator) + 2
    mean = embedding.mean(0)
    exact, sparse = soft_state(probs, embedding), sparse_soft_state(probs, embedding, mean)
    tail = torch.where(probs < TOKEN_CUT, probs, 0.0).sum(-1)
    tail = torch.where(tail > MAX_TAIL, 0.0, tail)
    bound = tail * (embedding - mean).norm(dim=-1).max()
    assert ((exact - sparse).norm(dim=-1) <= bound + 1e-4).all()
    assert ((exact - sparse).norm(dim=-1) <= 5e-3 * exact.norm(dim=-1)).all()


def test_flat_rows_are_computed_exactly_beside_peaked_ones():
    generator = torch.Generator().manual_seed(0)
    probs = torch.full((3, 20_000), 1 / 20_000)
    probs[1] = torch.eye(20_000)[17]
    embedding = torch.randn(20_000, 13, generator=generator)
    exact, sparse = soft_state(probs, embedding), sparse_soft_state(probs, embedding, embedding.mean(0))
    torch.testing.assert_close(sparse, exact)


def test_embedding_mode_generates_in_bf16(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint, "embedding", dtype=torch.bfloat16)
    output = generate(model, prompts, tokenizer)
    assert output.thinking_states.dtype == torch.bfloat16 and output.thinking_states.isfinite().all()


# Phases


def force(tokens, prompt_length):
    """Forces completions: `tokens` is [B, C]."""

    class Force(LogitsProcessor):
        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, -1e9)
            step = input_ids.shape[1] - prompt_length
            return forced.scatter_(1, tokens[: len(scores), step : step + 1], 0.0)

    return LogitsProcessorList([Force()])


def completion(model, prompts, tokenizer, texts, **kwargs):
    """Generates given completions, one a row, padded with `a`."""
    rows = [tokenizer(text).input_ids for text in texts]
    count = max(map(len, rows))
    filler = tokenizer.convert_tokens_to_ids("a")
    tokens = torch.tensor([row + [filler] * (count - len(row)) for row in rows])
    processors = force(tokens, prompts.input_ids.shape[1])
    return generate(model, prompts, tokenizer, logits_processor=processors, max_new_tokens=count, **kwargs)


def test_a_row_stops_thinking_at_the_token_that_completes_the_marker(model, prompts, tokenizer):
    output = completion(model, prompts, tokenizer, ["ab####7", "a##b##", "####ab#"])
    assert tokenizer.tokenize("ab####7") == ["a", "b", "##", "##", "7"]
    assert output.thinking_mask.tolist() == [
        [True, True, True, False, False],
        [True] * 5,
        [True, False, False, False, False],
    ]


def test_a_marker_in_the_prompt_does_not_count(model, tokenizer):
    prompts = tokenizer(["say #### 3 ##"], return_tensors="pt")
    output = completion(model, prompts, tokenizer, ["##ab"])
    assert output.thinking_mask.all()


def test_tokens_after_eos_do_not_think(model, prompts, tokenizer):
    output = completion(model, prompts, tokenizer, ["ab</s>cd", "abcde", "a</s>bcd"])
    assert output.thinking_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 2 + [False] * 3]


def test_rows_finished_by_another_criterion_do_not_think(model, prompts, tokenizer):
    class FirstRow(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            done = torch.zeros(len(input_ids), dtype=torch.bool)
            done[0] = input_ids.shape[1] >= prompts.input_ids.shape[1] + 2
            return done

    output = completion(model, prompts, tokenizer, ["abcd"] * 3, stopping_criteria=StoppingCriteriaList([FirstRow()]))
    assert output.thinking_mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]


def test_the_first_completion_token_is_fused_and_prompt_tokens_are_not(model, prompts, tokenizer):
    output = generate(model, prompts, tokenizer)
    assert output.thinking_mask[:, 0].all()
    with torch.no_grad():
        plain = model(**prompts).logits[:, -1]
    torch.testing.assert_close(output.logits[0], plain, rtol=0, atol=1e-5)


def test_without_a_marker_the_whole_completion_thinks_and_no_tokenizer_is_needed(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint, thinking_answer_start=None)
    model.config._name_or_path = ""
    output = completion(model, prompts, tokenizer, ["a####b"] * 3)
    assert output.thinking_mask.all()
    assert model.generate(**prompts, max_new_tokens=2).shape[0] == 3


# The same result by every way through `generate`


def greedy(model, prompts, tokenizer, **kwargs):
    return model.generate(
        **prompts, tokenizer=tokenizer, max_new_tokens=9, min_new_tokens=9, do_sample=False, **kwargs
    )


@pytest.mark.parametrize(
    "kwargs", [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}], ids=str
)
def test_greedy_output_does_not_depend_on(model, prompts, tokenizer, kwargs):
    expected = greedy(model, prompts, tokenizer)
    assert torch.equal(greedy(model, prompts, tokenizer, **kwargs), expected)


def test_a_left_padded_batch_equals_single_rows(model, prompts, tokenizer):
    together = greedy(model, prompts, tokenizer)[:, prompts.input_ids.shape[1] :]
    for row in range(3):
        keep = prompts.attention_mask[row].bool()
        single = {"input_ids": prompts.input_ids[row, keep][None], "attention_mask": torch.ones(1, int(keep.sum()))}
        assert torch.equal(greedy(model, single, tokenizer)[0, int(keep.sum()) :], together[row])


def test_uncached_states_equal_cached_ones(model, prompts, tokenizer):
    cached, uncached = (
        generate(model, prompts, tokenizer, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    torch.testing.assert_close(uncached.thinking_states, cached.thinking_states, rtol=0, atol=1e-4)
    torch.testing.assert_close(uncached.embeds_ratio, cached.embeds_ratio, rtol=0, atol=1e-5)
    assert torch.equal(uncached.thinking_mask, cached.thinking_mask)


def test_num_return_sequences_keeps_parity(model, prompts, tokenizer):
    output = generate(model, prompts, tokenizer, num_return_sequences=3)
    assert output.sequences.shape[0] == output.thinking_states.shape[0] == 9
    assert gap(model, prompts, output) <= 1e-4


def test_thinking_changes_the_output(model, prompts, tokenizer, plain_checkpoint):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    assert not torch.equal(greedy(model, prompts, tokenizer), greedy(base, prompts, None))


def test_mode_none_generates_what_the_base_generates(plain_checkpoint, prompts, tokenizer):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    model = make_model(plain_checkpoint, "none")
    for kwargs in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2, "do_sample": False}):
        outputs = []
        for candidate in (base, model):
            torch.manual_seed(3)
            outputs.append(candidate.generate(**prompts, max_new_tokens=8, **kwargs))
        assert torch.equal(*outputs)


def test_a_streamer_receives_the_completion(model, prompts, tokenizer):
    one = {"input_ids": prompts.input_ids[:1], "attention_mask": prompts.attention_mask[:1]}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    greedy(model, one, tokenizer, streamer=streamer)
    expected = greedy(model, one, tokenizer)[0, prompts.input_ids.shape[1] :]
    assert "".join(streamer) == tokenizer.decode(expected)


def test_states_are_kept_only_when_asked_for(model, prompts, tokenizer, monkeypatch):
    observers = []
    observer = generation_thinking.ThinkingObserver
    monkeypatch.setattr(
        generation_thinking, "ThinkingObserver", lambda *a, **k: observers.append(observer(*a, **k)) or observers[-1]
    )
    greedy(model, prompts, tokenizer)
    assert len(observers[0].states) == len(observers[0].masks) == len(observers[0].stats) == 1
    assert not observers[0].logps


def test_two_calls_in_two_threads_do_not_meet(model, tokenizer):
    texts = ["Tom has 3 apples.", "7+2="]
    inputs = [tokenizer([text], return_tensors="pt") for text in texts]
    expected = [greedy(model, x, tokenizer) for x in inputs]
    results = [None, None]

    def work(index):
        with collect_thinking(tokenizer) as rollouts:
            for _ in range(3):
                results[index] = greedy(model, inputs[index], None)
        assert len(rollouts) == 3

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_nothing_is_left_on_the_model(model, prompts, tokenizer):
    before = set(vars(model)) | set(vars(model.model))
    generate(model, prompts, tokenizer)
    assert set(vars(model)) | set(vars(model.model)) == before


# Tokenizers that nobody passes


def test_the_tokenizer_saved_beside_the_model_is_used(model, prompts, tokenizer):
    assert torch.equal(greedy(model, prompts, None), greedy(model, prompts, tokenizer))


def test_a_pipeline_works(model, tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = tokenizer(["Tom has"], return_tensors="pt")
    expected = tokenizer.decode(greedy(model, prompts, tokenizer)[0])
    assert pipe("Tom has", max_new_tokens=9, min_new_tokens=9, do_sample=False)[0]["generated_text"] == expected


def test_without_any_tokenizer_the_error_names_the_ways_out(prompts):
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY))
    with pytest.raises(
        ValueError, match=r"Pass `tokenizer=` to `generate`, or set `config.thinking_answer_start = None`"
    ):
        model.generate(**prompts, max_new_tokens=2)


def test_a_marker_out_of_reach_is_an_error(plain_checkpoint, prompts, tokenizer):
    model = make_model(plain_checkpoint, thinking_answer_start="答")
    with pytest.raises(ValueError, match="cannot produce the answer marker"):
        model.generate(**prompts, tokenizer=tokenizer, max_new_tokens=2)


# Refusals


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_model": "self"},
    ],
    ids=str,
)
def test_decoding_without_a_place_for_states_is_refused(model, prompts, tokenizer, kwargs):
    if "assistant_model" in kwargs:
        kwargs = {"assistant_model": model}
    with pytest.raises(ValueError, match="`thinking_mode=.*` does not support the generation mode"):
        model.generate(**prompts, tokenizer=tokenizer, max_new_tokens=3, **kwargs)


@pytest.mark.parametrize("call", ["generate_batch", "paged", "init_continuous_batching"])
def test_paged_decoding_is_refused(model, call):
    with pytest.raises(ValueError, match="Continuous batching .* does not support `thinking_mode="):
        if call == "paged":
            model.generate(torch.tensor([[5, 6]]), cache_implementation="paged", max_new_tokens=2)
        elif call == "generate_batch":
            model.generate_batch([[5, 6]])
        else:
            model.init_continuous_batching()


def test_the_decoding_step_has_no_graph_break(plain_checkpoint):
    model = make_model(plain_checkpoint).model
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    recorder = ThinkingRecorder()
    inputs = {
        "input_ids": torch.tensor([[5], [6]]),
        "thinking_states": torch.ones(2, 1, 24),
        "thinking_mask": torch.tensor([[True], [False]]),
        "use_cache": False,
    }
    with torch.no_grad():
        compiled(**inputs, thinking_recorder=recorder)
        expected = model(**inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(recorder.hidden, expected)
