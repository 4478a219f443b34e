import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_evidenceflow.probe.top_predictions import prediction_table, top_predictions


IDS = [5, 9, 30, 7]


@pytest.fixture(scope="module")
def model(plain_checkpoint):
    return AutoModelForCausalLM.from_pretrained(plain_checkpoint).eval()


@pytest.fixture(scope="module")
def probabilities(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].softmax(-1)


def test_candidates_are_torchs_top_k(model, tokenizer, probabilities):
    (prediction,) = top_predictions(model, tokenizer, IDS, k=5)
    values, indices = probabilities[-1].topk(5)
    assert [candidate.token_id for candidate in prediction.candidates] == indices.tolist()
    assert [candidate.probability for candidate in prediction.candidates] == pytest.approx(values.tolist())
    assert [candidate.rank for candidate in prediction.candidates] == [1, 2, 3, 4, 5]


def test_every_position_is_ranked_against_the_token_that_follows(model, tokenizer, probabilities):
    predictions = top_predictions(model, tokenizer, IDS, k=2, every_position=True, next_id=40)
    assert [prediction.position for prediction in predictions] == [0, 1, 2, 3]
    for prediction, row, following in zip(predictions, probabilities, [9, 30, 7, 40]):
        order = row.argsort(descending=True).tolist()
        assert prediction.actual.token_id == following
        assert prediction.actual.rank == order.index(following) + 1
        assert prediction.actual.probability == pytest.approx(row[following].item())


def test_an_unknown_next_token_is_none(model, tokenizer):
    assert top_predictions(model, tokenizer, IDS)[0].actual is None


def test_more_candidates_than_tokens_are_all_tokens(model, tokenizer):
    assert len(top_predictions(model, tokenizer, IDS, k=1000)[0].candidates) == 97


def test_a_prompt_without_tokens_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="no token"):
        top_predictions(model, tokenizer, [])


def test_the_table_has_a_row_a_position(model, tokenizer):
    title, columns, rows = prediction_table("x", top_predictions(model, tokenizer, IDS, 2, every_position=True))
    assert title == "x" and len(rows) == 4 and {len(row) for row in rows} == {len(columns)}
    assert rows[-1][2] == "-"
