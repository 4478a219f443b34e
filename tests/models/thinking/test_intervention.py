"""Interventions on thinking states, in both decoding loops."""

import threading

import pytest
import torch
from thinking_models import MASK, PROMPTS, make_thinker, think

from hf_evidenceflow import RolloutEngine, ThinkingIntervention
from hf_evidenceflow.models.thinking.intervention import StateIntervention, Swap, current_intervention, derangement
from hf_evidenceflow.models.thinking.thinking_schedules import HeadRule


FUSING = ["coconut", "codi", "soft", "projection", "embedding"]
PARTNERS = derangement(PROMPTS.unique(dim=0, return_inverse=True)[1])
each_loop = pytest.mark.parametrize("engine", [False, True], ids=["stock", "engine"])


def loop(engine):
    return {"custom_generate": RolloutEngine(draws="multinomial")} if engine else {}


def under(kind, model, **kwargs):
    with ThinkingIntervention(kind):
        return think(model, **kwargs)


@each_loop
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode", ["soft", "projection", "embedding"])
def test_off_is_the_model_without_thinking(mode, sample, engine):
    settings = {"do_sample": sample, "top_k": 0}
    expected = think(make_thinker("none"), **settings)
    found = under("off", make_thinker(mode), **settings, **loop(engine))
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert not found.thinking_mask.any()
    assert think(make_thinker(mode), **settings).sequences.tolist() != expected.sequences.tolist()


@pytest.mark.parametrize("mode", ["soft", "projection"])
def test_off_gives_the_logits_of_the_base_model_bit_for_bit(mode):
    expected = think(make_thinker("none"), output_logits=True)
    found = under("off", make_thinker(mode), output_logits=True)
    assert all(torch.equal(one, other) for one, other in zip(found.logits, expected.logits))


@each_loop
@pytest.mark.parametrize("mode", ["coconut", "codi"])
def test_off_feeds_the_placeholders_of_thoughts_as_themselves(mode, engine):
    expected = think(make_thinker("pause"))
    assert under("off", make_thinker(mode), **loop(engine)).sequences.tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("kind", ["off", "zero", "shuffle", "mean", "swap", "direction"])
def test_pause_has_no_states_to_intervene_in(kind):
    expected = think(make_thinker("pause"))
    assert under(kind, make_thinker("pause")).sequences.tolist() == expected.sequences.tolist()


@each_loop
@pytest.mark.parametrize("mode", FUSING)
def test_zero_feeds_states_of_0(mode, engine):
    model = make_thinker(mode)
    output = under("zero", model, output_logits=not engine, **loop(engine))
    assert not output.thinking_states[output.thinking_mask].any()
    inputs = {"thinking_states": torch.zeros_like(output.thinking_states), "thinking_mask": output.thinking_mask}
    mask = torch.cat([MASK, MASK.new_ones(3, 8)], dim=1)
    with torch.no_grad():
        logits = model(output.sequences, attention_mask=mask, **inputs).logits[:, PROMPTS.shape[1] + 2 : -1]
    assert logits.argmax(-1).tolist() == output.sequences[:, PROMPTS.shape[1] + 3 :].tolist()


@each_loop
@pytest.mark.parametrize("mode", FUSING)
def test_shuffle_gives_each_row_the_first_state_of_another(mode, engine):
    model = make_thinker(mode)
    states = think(model, **loop(engine)).thinking_states[:, 0]
    shuffled = under("shuffle", model, **loop(engine)).thinking_states[:, 0]
    donors = [[torch.allclose(one, other) for other in states].index(True) for one in shuffled]
    assert sorted(donors) == [0, 1, 2] and all(donor != row for row, donor in enumerate(donors))


@each_loop
@pytest.mark.parametrize("mode", FUSING)
def test_mean_gives_each_row_the_mean_of_the_first_states(mode, engine):
    model = make_thinker(mode)
    states = think(model, **loop(engine)).thinking_states[:, 0]
    output = under("mean", model, **loop(engine))
    torch.testing.assert_close(output.thinking_states[:, 0], states.mean(0).expand(3, -1))


@torch.no_grad()
def own_states(model, output):
    """What each row's thoughts would be, given the inputs that it had, `(B, 3, H)`."""
    mask = torch.cat([MASK, MASK.new_ones(3, 8)], dim=1)
    inputs = {"thinking_states": output.thinking_states, "thinking_mask": output.thinking_mask}
    scores = model(output.sequences, attention_mask=mask, **inputs).logits.float()
    width = PROMPTS.shape[1]
    return scores[:, width - 1 : width + 2].softmax(-1).double() @ model.get_input_embeddings().weight


@each_loop
def test_swap_feeds_the_whole_train_of_thought_of_one_other_row(engine):
    model = make_thinker("soft")
    output = under("swap", model, **loop(engine))
    own, fed = own_states(model, output), output.thinking_states[:, :3]
    torch.testing.assert_close(fed, own[PARTNERS], atol=1e-5, rtol=0)
    assert (own[0] - own[1]).norm(dim=-1).min() > 0.1


@each_loop
def test_direction_keeps_the_norm_of_a_rows_own_state(engine):
    model = make_thinker("soft")
    output = under("direction", model, **loop(engine))
    own, fed = own_states(model, output), output.thinking_states[:, :3]
    torch.testing.assert_close(fed.norm(dim=-1), own.norm(dim=-1), atol=1e-5, rtol=0)
    cosine = torch.cosine_similarity(fed, own[PARTNERS], dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)


def test_a_swap_keeps_its_partners_and_their_last_states():
    swap = Swap(torch.tensor([0, 1, 0, 2]))
    states = torch.arange(8.0).view(4, 2)
    partners = swap(states, torch.arange(4))
    rows = torch.tensor([3, 1])
    later = swap(states[rows] + 10, rows)
    for place, row in enumerate(rows.tolist()):
        partner = partners[row]
        expected = partner + 10 if partner.tolist() in states[rows].tolist() else partner
        assert later[place].tolist() == expected.tolist()


@pytest.mark.parametrize("groups", [[0], [0, 0], [0, 0, 0, 1]])
def test_a_swap_needs_a_partner_with_another_prompt(groups):
    with pytest.raises(ValueError, match="no more than half of the rows may share one"):
        Swap(torch.tensor(groups))


@each_loop
@pytest.mark.parametrize("kind", ["shuffle", "mean", "swap", "direction"])
def test_a_row_that_thinks_alone_gets_what_another_would_have_thought(kind, engine, monkeypatch):
    model = make_thinker("tarpo", count=8)
    only_the_first = torch.tensor([True, False, False])
    monkeypatch.setattr(HeadRule, "decide", lambda self, memory, probs, hidden: (only_the_first, memory))
    output = under(kind, model, **loop(engine))
    assert output.thinking_mask.tolist() == [[True] * 8, [False] * 8, [False] * 8]
    assert output.thinking_states[0, 0].any()
    assert not torch.allclose(output.thinking_states[0, 0], think(model, **loop(engine)).thinking_states[0, 0])


def test_a_swap_needs_all_rows_at_the_same_time():
    model = make_thinker("soft")
    with pytest.raises(ValueError, match="Leave the engine's `max_rows` out"):
        under("swap", model, custom_generate=RolloutEngine(max_rows=1))


@pytest.mark.parametrize("kind", ["zero", "shuffle", "mean", "swap", "direction"])
@pytest.mark.parametrize("mode", FUSING)
def test_both_loops_intervene_alike(mode, kind):
    model = make_thinker(mode)
    expected, found = under(kind, model), under(kind, model, **loop(True))
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(found.thinking_states, expected.thinking_states, atol=1e-4, rtol=0)  # fp32 scores
    assert found.sequences.tolist() != think(model).sequences.tolist()


def test_shuffle_avoids_samples_of_the_same_prompt():
    model = make_thinker("coconut")
    settings = {"do_sample": True, "num_return_sequences": 2}
    states = think(model, **settings).thinking_states[:, 0]
    shuffled = under("shuffle", model, **settings).thinking_states[:, 0]
    for row, state in enumerate(shuffled):
        donors = [place for place, other in enumerate(states) if torch.allclose(state, other)]
        assert all(donor // 2 != row // 2 for donor in donors)


@pytest.mark.parametrize("groups", [[0, 0], [0, 1, 2], [0, 0, 1, 1], [2, 0, 2, 1, 0, 1], [0, 0, 0, 1], [5] * 7])
def test_a_derangement_moves_each_row_and_leaves_its_group_where_it_can(groups):
    groups = torch.tensor(groups)
    places = derangement(groups)
    assert sorted(places.tolist()) == list(range(len(groups)))
    assert (places != torch.arange(len(groups))).all()
    if groups.unique(return_counts=True)[1].max() * 2 <= len(groups):
        assert (groups[places] != groups).all()


def test_the_last_row_that_thinks_gets_what_another_had():
    intervene = StateIntervention("shuffle", torch.tensor([0, 0, 1]))
    states = torch.arange(6.0).view(3, 2)
    intervene(states, torch.tensor([0, 1, 2]))
    assert intervene(torch.full((1, 2), 9.0), torch.tensor([0])).tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize("kind", ["shuffle", "mean"])
def test_a_single_row_has_no_other_to_take_from(kind):
    model = make_thinker("soft")
    with pytest.raises(ValueError, match=f"'{kind}'.* needs at least two rows"), ThinkingIntervention(kind):
        model.generate(PROMPTS[1:2], max_new_tokens=3)


def test_of_nested_blocks_the_innermost_counts_and_the_outer_comes_back():
    outer = ThinkingIntervention("zero")
    with outer:
        with ThinkingIntervention("off"), outer:
            assert current_intervention() == "zero"
        assert current_intervention() == "zero"
    assert current_intervention() is None


def test_it_ends_with_an_exception():
    with pytest.raises(KeyError), ThinkingIntervention("zero"):
        raise KeyError
    assert current_intervention() is None


def test_other_threads_think_undisturbed():
    seen = []
    with ThinkingIntervention("zero"):
        thread = threading.Thread(target=lambda: seen.append(current_intervention()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="'swap', 'direction', got 'exchange'"):
        ThinkingIntervention("exchange")
