import pytest
import torch
from peft import LoraConfig, get_peft_model
from probe_models import FAMILIES, LAYERS, VOCABULARY, WIDTH, looped_model, tiny_model, token_ids
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from hf_evidenceflow.losses import cross_entropy, mse, next_token_targets
from hf_evidenceflow.models.decoder import record_layer_states
from hf_evidenceflow.probe.measures import lens_measures
from hf_evidenceflow.probe.probe import EvidenceProbe


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_row_is_the_models_own_output(family):
    model, ids = tiny_model(family), token_ids()
    result = EvidenceProbe(model, chunk_size=1).probe({"input_ids": ids})  # where a readout anew rounds otherwise
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    own = lens_measures(logits, ids[:, 1:].flatten())
    assert result.layers == list(range(-1, LAYERS))
    for name, value in (("lens_loss", own.loss), ("entropy", own.entropy), ("log_odds", own.log_odds)):
        assert torch.equal(result.measures[name][-1], value)
    assert torch.equal(result.top_probabilities[-1], own.top_probabilities)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_on_the_last_states_gives_the_logits_exactly(family):
    model, ids = tiny_model(family), token_ids()
    probe = EvidenceProbe(model)
    with torch.no_grad(), record_layer_states(probe.parts) as states:
        logits = model(ids).logits
        assert torch.equal(probe.parts.readout(states[-1]), logits)


# Mamba gives its layers' inputs as `hidden_states`
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba"])
def test_each_layer_is_measured_as_the_losses_measure_it(family):
    model, ids = tiny_model(family), token_ids()
    probe = EvidenceProbe(model)
    result = probe.probe({"input_ids": ids})
    with torch.no_grad():
        index, labels = next_token_targets(ids)
        hidden = model(ids, output_hidden_states=True).hidden_states
        for depth in range(LAYERS):  # the last entry is after the final norm
            states = hidden[depth].flatten(0, 1)[index]
            target = model.get_input_embeddings()(labels)
            expected = mse(states, target).item(), cross_entropy(states, labels, probe.parts.readout).item()
            found = (result.measures[name][depth].mean().item() for name in ("mse_to_target", "lens_loss"))
            assert tuple(found) == pytest.approx(expected, rel=1e-5)


def test_each_loop_of_a_block_counts_as_a_layer():
    result = EvidenceProbe(looped_model(4), layer_modules="model.shared").probe({"input_ids": token_ids()})
    assert result.layers == [-1, 0, 1, 2, 3]
    assert (result.measures["step_norm"][1:] > 0).all()


def test_an_adapter_is_looked_through():
    model, ids = tiny_model(), token_ids()
    plain = EvidenceProbe(model).probe({"input_ids": ids}).measures
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned = EvidenceProbe(wrapped).probe({"input_ids": ids}).measures
    assert torch.equal(tuned["lens_loss"][0], plain["lens_loss"][0])  # the embedding, before any adapter
    assert not torch.allclose(tuned["lens_loss"][-1], plain["lens_loss"][-1])


def test_the_chunk_size_changes_nothing_but_memory():
    model, batch = tiny_model(), {"input_ids": token_ids(3, 5)}
    whole, parts = (EvidenceProbe(model, chunk_size=size).probe(batch) for size in (256, 2))
    for name, values in whole.measures.items():
        torch.testing.assert_close(parts.measures[name], values, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_no_more_tokens_than_a_chunk_are_read_out_at_a_time():
    model, sizes = tiny_model(), []
    probe = EvidenceProbe(model, chunk_size=4)
    handle = model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    probe.probe({"input_ids": token_ids(3, 5)})
    handle.remove()
    assert sizes[0] == 15 and max(sizes[1:]) == 4  # the model's own logits, then the lens


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(side):
    ids, mask = token_ids(2, 5), torch.ones(2, 5, dtype=torch.long)
    pad = torch.zeros(2, 3, dtype=torch.long)
    order = (pad, ids) if side == "left" else (ids, pad)
    masks = (pad, mask) if side == "left" else (mask, pad)
    probe = EvidenceProbe(tiny_model())
    padded = probe.probe({"input_ids": torch.cat(order, 1), "attention_mask": torch.cat(masks, 1)})
    plain = probe.probe({"input_ids": ids})
    assert padded.labels == plain.labels and padded.rows == plain.rows
    assert padded.positions == [position + 3 * (side == "left") for position in plain.positions]
    torch.testing.assert_close(padded.measures["lens_loss"], plain.measures["lens_loss"], rtol=1e-4, atol=1e-4)


def test_borders_of_packed_sequences_and_unlabelled_tokens_are_left_out():
    ids = token_ids(1, 6)
    labels = ids.clone()
    labels[0, 5] = -100
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    result = EvidenceProbe(tiny_model()).probe({"input_ids": ids, "position_ids": positions, "labels": labels})
    assert result.positions == [0, 1, 3]


def test_the_model_keeps_its_modes_and_gets_no_dropout():
    model = tiny_model("opt_post_norm").train()
    model.model.decoder.layers[1].eval()
    modes = [module.training for module in model.modules()]
    results = [EvidenceProbe(model).probe({"input_ids": token_ids()}) for _ in range(2)]
    assert torch.equal(results[0].measures["lens_loss"], results[1].measures["lens_loss"])
    assert [module.training for module in model.modules()] == modes


def test_no_hook_and_no_mode_is_left_after_an_exception():
    model = tiny_model().train()
    with pytest.raises(IndexError):
        EvidenceProbe(model).probe({"input_ids": torch.full((1, 3), VOCABULARY)})
    assert hooks(model) == 0 and model.training


def test_texts_are_run_one_by_one_with_their_numbers(tokenizer):
    probe = EvidenceProbe(tiny_model(), tokenizer)
    both, second = probe.probe(["2 cats", "a dog ran"]), probe.probe("a dog ran")
    assert both.rows == [0] * 5 + [1] * 8
    assert torch.equal(both.measures["lens_loss"][:, 5:], second.measures["lens_loss"])


def test_the_rank_of_the_states_is_over_all_texts(tokenizer):
    probe = EvidenceProbe(tiny_model(), tokenizer)
    assert min(probe.probe(["2 cats", "a dog ran"]).effective_rank) > max(probe.probe("2 cats").effective_rank)


def test_a_long_text_is_cut_with_a_warning(tokenizer, caplog):
    result = EvidenceProbe(tiny_model(), tokenizer, max_length=4).probe("a dog ran")
    assert len(result.labels) == 3 and "9 tokens; the first 4" in caplog.text


def test_tokens_are_shown_with_their_spaces_and_padded_vocabulary_by_id(tokenizer):
    result = EvidenceProbe(tiny_model(), tokenizer, top_k=VOCABULARY).probe("a b")
    assert [result.token_strings[index] for index in result.input_ids] == ["a", " "]
    assert result.token_strings[VOCABULARY - 1] == f"[{VOCABULARY - 1}]"


@pytest.mark.parametrize("split", [[4], [1, 3], [1, 1, 1, 1]])
def test_a_summary_does_not_depend_on_the_batches(split):
    probe, ids = EvidenceProbe(tiny_model()), token_ids(4, 5)
    whole = probe.summarize([{"input_ids": ids}], rank_tokens=6)
    parts = probe.summarize(({"input_ids": part} for part in ids.split(split)), rank_tokens=6)
    for row, other in zip(parts, whole):
        assert row == pytest.approx(other, rel=1e-5)


def test_a_summary_has_the_means_of_the_probe():
    probe, batch = EvidenceProbe(tiny_model()), {"input_ids": token_ids()}
    result, rows = probe.probe(batch), probe.summarize([batch])
    assert [row["layer"] for row in rows] == list(range(LAYERS))
    for row in rows:
        for name in ("lens_loss", "state_norm", "relative_step", "cosine_to_target", "mse_to_target"):
            assert row[name] == pytest.approx(result.measures[name][row["layer"] + 1].mean().item(), rel=1e-5)
        assert row["effective_rank"] == pytest.approx(result.effective_rank[row["layer"] + 1], rel=1e-4)
        hits = result.measures["label_rank"][row["layer"] + 1] == 1
        assert row["lens_accuracy"] == pytest.approx(hits.float().mean().item())


def test_the_sample_for_the_rank_is_bounded_and_drawn_by_the_seed():
    probe, batch = EvidenceProbe(tiny_model()), {"input_ids": token_ids(5, 9)}
    ranks = {
        seed: [row["effective_rank"] for row in probe.summarize([batch], rank_tokens=2, seed=seed)] for seed in (0, 1)
    }
    assert max(ranks[0] + ranks[1]) <= 2 + 1e-5 and ranks[0] != ranks[1]


@pytest.mark.parametrize("texts, message", [([], "no text"), (["a dog", "a"], r"'a' has 1 token")])
def test_too_little_text_is_an_error(tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        EvidenceProbe(tiny_model(), tokenizer).probe(texts)


def test_texts_without_a_tokenizer_are_an_error():
    with pytest.raises(ValueError, match="need a tokenizer"):
        EvidenceProbe(tiny_model()).probe("a dog")


@pytest.mark.parametrize("call", ["probe", "summarize"])
def test_a_batch_without_any_target_is_an_error(call):
    batch = {"input_ids": token_ids(3, 1)}
    with pytest.raises(ValueError, match=r"(has|with) a right next token"):
        getattr(EvidenceProbe(tiny_model()), call)(batch if call == "probe" else [batch])


@pytest.mark.parametrize("setting", ["top_k", "chunk_size", "max_length", "step_threshold"])
def test_a_setting_out_of_its_range_is_named(setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be at least .*, got -1"):
        EvidenceProbe(tiny_model(), **{setting: -1})


def test_a_model_without_a_head_is_an_error():
    with pytest.raises(ValueError, match="no output head"):
        EvidenceProbe(tiny_model().model)


def test_unknown_layers_are_an_error_that_lists_the_lists():
    with pytest.raises(ValueError, match=r"'blocks'.*model\.layers"):
        EvidenceProbe(tiny_model(), layer_modules="blocks")


def test_a_model_that_changes_its_last_states_is_refused():
    model = tiny_model()
    model.lm_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), model.lm_head)
    model.get_output_embeddings = lambda: model.lm_head[1]
    with pytest.raises(ValueError, match="does more between its last layer and its logits"):
        EvidenceProbe(model).probe({"input_ids": token_ids()})


def test_embeddings_of_another_width_are_refused():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40, "max_position_embeddings": 32}
    model = OPTForCausalLM(OPTConfig(vocab_size=97, hidden_size=24, word_embed_proj_dim=12, **sizes))
    with pytest.raises(ValueError, match="width 24 and embeddings of width 12"):
        EvidenceProbe(model).probe({"input_ids": token_ids()})
