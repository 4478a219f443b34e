"""Each way of thinking through the whole chain on one checkpoint: only `thinking_mode` is another."""

import pytest
import torch
from datasets import Dataset
from decoder_families import save_plain
from thinking_models import PLACEHOLDER

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.thinking_audit import audit_thinking
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


pytestmark = pytest.mark.slow
FIELDS = {
    "thinking_residual_r_min": 0.05,
    "thinking_residual_r_max": 0.1,
    "thinking_count": 4,
    "thinking_placeholder_id": PLACEHOLDER,
    "thinking_start_id": 40,
    "thinking_end_id": 41,
    "thinking_min_text": 1,
    "thinking_top_k": 20,
    "dtype": torch.float32,
}
PROMPTS = ["Ann?", "7+2=", "abc", "d"]


@pytest.fixture(scope="module")
def plain(tokenizer, tmp_path_factory):
    """Folders of plain checkpoints by family."""
    folders = {}
    for family in ("qwen2", "llama"):
        folders[family] = str(tmp_path_factory.mktemp(family))
        save_plain(family, tokenizer, folders[family])
    return folders


def letters(completions, **kwargs):
    return [float(sum(map(ord, text)) % 11) for text in completions]


def exact(completions, answer):
    return [float(text == gold) for text, gold in zip(completions, answer)]


def train(start, mode, output):
    args = HRPOConfig(
        output,
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=9,
        parity_check_steps=1,
        temperature=2.0,
        learning_rate=1e-3,
        warmup_steps=0,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"thinking_mode": mode, **FIELDS, "dtype": "float32"},
    )
    trainer = HRPOTrainer(start, letters, args=args, train_dataset=Dataset.from_dict({"prompt": PROMPTS}))
    trainer.train()
    trainer.save_model(output)
    return trainer


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("mode", THINKING_METHODS)
def test_it_is_trained_saved_loaded_decoded_evaluated_and_audited(mode, family, plain, tokenizer, tmp_path):
    before = load_thinking_model(plain[family], thinking_mode=mode, **FIELDS)
    trainer = train(plain[family], mode, str(tmp_path))
    assert trainer.state.global_step == 1

    model = load_thinking_model(str(tmp_path)).eval()
    assert model.config.thinking_method == before.config.thinking_method
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters())]
    assert any(changed)

    ways = {"max_new_tokens": 7, "batch_size": 2, "do_sample": True, "num_samples": 2}
    found = [each for batch in generate_completions(model, tokenizer, PROMPTS, **ways) for each in batch]
    assert len(found) == 8 and len({each.text for each in found}) > 1

    rows = [{"prompt": prompt, "answer": "x"} for prompt in PROMPTS]
    if mode == "none":
        with pytest.raises(ValueError, match="does not think"):
            audit_thinking(model, tokenizer, rows, exact, max_new_tokens=7)
        return
    audit = audit_thinking(model, tokenizer, rows, exact, max_new_tokens=7, batch_size=4)
    assert set(audit.summary()) >= {"on", "off", "zero", "shuffle", "mean"}
