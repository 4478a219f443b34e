"""Settings of a latent run that are refused."""

import pytest

from hf_evidenceflow import LatentSFTConfig
from hf_evidenceflow.models.thinking.latent_forward import LatentOptions


REFUSED = [
    ({"objective": "answers"}, "`objective` must be one of 'soft_targets', 'answer', 'distill', got 'answers'"),
    ({"answer_template": "####"}, "`answer_template` must contain `{answer}` once, got '####'"),
    ({"gradient_checkpointing": True}, "Set it to False, and bound memory with smaller batches"),
    ({"packing": True}, "`packing` and `padding_free` have no place for thoughts. Set them to False"),
    ({"padding_free": True}, "`packing` and `padding_free`"),
    ({"remove_unused_columns": True}, "would remove the thoughts"),
    ({"loss_type": "dft"}, "Leave out `loss_type='dft'`"),
    ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1`"),
    ({"teacher_forcing_steps": -1}, "`teacher_forcing_steps` must be at least 0, got -1"),
    ({"objective": "answer", "teacher_forcing_steps": 0.5}, "needs targets, and `objective='answer'` has none"),
    ({"earlier_stage_share": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ({"latent_tokens_per_step": 0}, "must be at least 1, got 0"),
    ({"latent_tokens_per_step": 2}, "is for `objective='answer'`, got 'soft_targets'"),
    ({"objective": "distill"}, "needs `thinking_count`"),
    ({"objective": "distill", "thinking_count": 2, "latent_curriculum": [1]}, "has no stages"),
    ({"latent_curriculum": []}, "needs stages"),
    ({"latent_curriculum": [-1]}, r"got \[-1\]"),
    ({"latent_curriculum": [1], "latent_steps_per_stage": 2, "latent_until_loss": 1.0}, "not by both"),
    ({"latent_steps_per_stage": 2}, "`latent_steps_per_stage=2` needs a `latent_curriculum`"),
    ({"latent_until_loss": 0.1}, "`latent_until_loss=0.1` needs"),
    ({"earlier_stage_share": 0.1}, "`earlier_stage_share=0.1` needs"),
    ({"reset_optimizer": True}, "`reset_optimizer=True` needs"),
    ({"latent_backprop": 0}, "must be at least 1 or None, got 0"),
    ({"latent_backprop": 1, "latent_iterations": 2}, "Leave one of them out"),
]


@pytest.mark.parametrize("settings, match", REFUSED)
def test_bad_settings_are_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        LatentSFTConfig(str(tmp_path), use_cpu=True, **settings)


def test_settings_of_a_command_line_are_read(tmp_path):
    args = LatentSFTConfig(str(tmp_path), use_cpu=True, thinking_settings='{"thinking_residual_r_min": 0.05}')
    assert args.thinking_settings == {"thinking_residual_r_min": 0.05}


def test_the_forward_pass_has_the_settings(tmp_path):
    args = LatentSFTConfig(str(tmp_path), use_cpu=True, latent_backprop=3)
    assert args.latent_options() == LatentOptions(3, None)
