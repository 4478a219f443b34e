"""Loops under latent training: pause positions that loop inside the model and are taught the tokens of gold steps."""

import pytest
import torch
from latent_trainers import make_latent_trainer
from tiny_models import TINY

from hf_evidenceflow.models.thinking.families import thinking_family


ROWS = [
    {"prompt": "Tom", "answer": "c", "steps": ["a", "b"]},
    {"prompt": "Ann?", "answer": "b", "steps": ["c", "d"]},
    {"prompt": "7+2", "answer": "9", "steps": ["e", "a"]},
]


def make_model(**fields):
    family = thinking_family("looped_llama")
    torch.manual_seed(0)
    loops = {"num_loops": 3, "loop_norm": True, "loop_injection": True, "num_hidden_layers": 2}
    settings = {"thinking_mode": "pause", "thinking_count": 2, "thinking_placeholder_id": 5}
    return family.causal_lm(family.config(**{**TINY, **loops, **settings, **fields}))


@pytest.mark.slow
def test_latent_positions_learn_the_gold_tokens_and_the_answer_is_written_after_them(tokenizer, tmp_path):
    trainer = make_latent_trainer(
        tmp_path, tokenizer, rows=ROWS, model=make_model(), thinking_mode="pause", max_steps=60
    )
    trainer.train()
    model = trainer.model.eval()
    for row in ROWS:
        prompt = torch.tensor([tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]])
        placeholder = prompt.new_full((1, 2), model.config.thinking_placeholder_id)
        logits = model(torch.cat([prompt, placeholder], 1)).logits[0, prompt.shape[1] - 1 : -1]
        assert [tokenizer.decode(token) for token in logits.argmax(-1)] == row["steps"]
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
        assert f"={row['answer']}" in tokenizer.decode(written[0])


def test_a_loop_reads_the_embeddings_and_the_last_hidden_state():
    """LOTUS: x_r = e + h_{r - 1}, through the whole model."""
    model = make_model(thinking_mode="none").eval()
    ids = torch.tensor([[9, 17, 5, 31]])
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = model.base_model(ids).last_hidden_state
        model.set_num_loops(1)
        states = embeddings
        for _ in range(3):
            hidden = model.base_model(inputs_embeds=states).last_hidden_state
            states = embeddings + hidden
    torch.testing.assert_close(hidden, expected)
