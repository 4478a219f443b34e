"""`recipes/pretrain_tinyseek.py`: the model that it makes, and what it logs."""

import json

import pytest
from repository import RECIPES

from hf_evidenceflow import TinySeekForCausalLM
from hf_evidenceflow.recipes import pretrain_clm, pretrain_tinyseek
from hf_evidenceflow.report.run_record import read_run_record


CONFIGS = RECIPES / "configs/pretrain_tinyseek"
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 2,
    "n_routed_experts": 5,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
}


@pytest.fixture
def recipe():
    return pretrain_tinyseek


def run(recipe, output, **options):
    settings = {
        "output_dir": output,
        "config_overrides": json.dumps(SMALL),
        "generated_documents": 40,
        "train_vocab_size": 270,
        "block_size": 16,
        "max_steps": 3,
        "warmup_steps": 1,
        "save_steps": 3,
        "eval_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 3,
        **options,
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return recipe.main(["--config", str(CONFIGS / "smoke.yaml"), *arguments])


def test_it_trains_a_looped_model_and_logs_its_experts(recipe, tmp_path):
    trainer = run(recipe, tmp_path / "run")
    assert type(trainer.model) is TinySeekForCausalLM and len(trainer.model.model.layers) == 1
    assert all("router_dead_experts" in row for row in trainer.state.log_history if "loss" in row)
    assert "eval_router_max_load" in read_run_record(tmp_path / "run")["metrics"]


def test_the_head_alone_can_be_trained(recipe, tmp_path):
    trainer = run(recipe, tmp_path / "run", trainable_modules="lm_head")
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained == {"lm_head.weight", "lm_head.bias"}


def test_a_bad_size_is_an_error_that_names_it(recipe, tmp_path):
    with pytest.raises(ValueError, match="`num_experts_per_tok` must be from 1 to `n_routed_experts`"):
        run(recipe, tmp_path / "run", config_overrides=json.dumps({**SMALL, "num_experts_per_tok": 6}))


def test_the_published_settings_are_read(recipe):
    parsed = pretrain_clm.RecipeParser(
        (recipe.TinySeekScriptArguments, pretrain_clm.EvidenceFlowArguments, pretrain_clm.PretrainingConfig)
    ).parse_args_and_config(["--config", str(CONFIGS / "paper.yaml"), "--bf16", "false"])
    assert parsed[0].model_type == "tinyseek"
    assert parsed[1].config().objective == "mse"
    assert (parsed[2].warmup_steps, parsed[2].exponential_stable_steps, parsed[2].max_steps) == (471, 829, 4710)
