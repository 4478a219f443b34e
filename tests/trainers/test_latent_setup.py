"""What a latent run settles before it trains, and which models and settings are refused."""

import copy
from types import SimpleNamespace

import pytest
from latent_trainers import STEPS, TARGETS, make_latent_trainer, make_thinking_model
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoTokenizer, Qwen2ForCausalLM

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer, ThinkingQwen2Config
from hf_evidenceflow.trainers import latent_setup
from hf_evidenceflow.trainers.latent_rows import compose
from hf_evidenceflow.trainers.latent_setup import thought_count


EQUAL = [row | {"thought_targets": [{"a": 1.0}, {"b": 1.0}], "steps": ["a", "b"]} for row in TARGETS]


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(objective="soft_targets", rows=None, model=None, **settings):
        return make_latent_trainer(tmp_path, tokenizer, objective, rows, model, **settings)

    return make


@pytest.mark.parametrize(
    "objective, settings, expected",
    [
        ("soft_targets", {}, (None, "sample", None)),
        ("soft_targets", {"thinking_count": 2}, (2, "sample", None)),
        ("soft_targets", {"thinking_mode": "pause"}, (2, "placeholder", 0)),
        ("soft_targets", {"thinking_mode": "embedding", "thinking_token_policy": "argmax"}, (None, "argmax", None)),
        ("soft_targets", {"thinking_mode": "none"}, (None, "sample", None)),
        ("answer", {"latent_curriculum": [0, 3], "latent_tokens_per_step": 2}, (6, "placeholder", 0)),
        ("answer", {"latent_curriculum": None, "latent_steps_per_stage": None}, (2, "placeholder", 0)),
        ("answer", {"thinking_mode": "soft"}, (2, "placeholder", 0)),
        ("distill", {"thinking_count": 3, "placeholder_token": "."}, (3, "placeholder", 67)),
    ],
)
def test_the_config_says_how_the_checkpoint_decodes(make, tokenizer, objective, settings, expected):
    trainer = make(objective, EQUAL, model=make_thinking_model("soft"), **settings)
    config = trainer.model.config
    placeholder = config.thinking_placeholder_id if config.token_policy == "placeholder" else None
    if "placeholder_token" in settings:
        expected = (*expected[:2], tokenizer.convert_tokens_to_ids("."))
    assert (config.thinking_count, config.token_policy, placeholder) == expected


def test_a_control_forgets_the_count_and_placeholder_of_its_checkpoint(make):
    trainer = make(rows=EQUAL, model=make_thinking_model("coconut"), thinking_mode="none")
    config = trainer.model.config
    assert (config.thinking_mode, config.thinking_count, config.token_policy) == ("none", None, "sample")


def test_the_placeholder_is_no_token_that_ends_texts(make, tokenizer, tmp_path):
    ending = copy.deepcopy(tokenizer)
    ending.pad_token = ending.eos_token
    with pytest.raises(ValueError, match="Set `placeholder_token`, for example to"):
        make_latent_trainer(tmp_path, ending, "answer")
    for text in ("</s>", "abc"):
        with pytest.raises(ValueError, match="must be one token that ends no text, got"):
            make("answer", placeholder_token=text)


UNEQUAL = r"the rows have 0, 1, 2, 3\. Give all rows as many, or cut them"
REFUSED = {
    "an unknown mode": ({"thinking_mode": "sofd"}, "`thinking_mode` must be one of 'projection', .* got 'sofd'"),
    "settings of a model that is there": (
        {"thinking_settings": {"thinking_residual_c": 4}},
        "for a model that the tr",
    ),
    "a counted mode with unequal rows": ({"thinking_mode": "pause"}, UNEQUAL),
    "a count that is not trained": (
        {"thinking_count": 7, "rows": EQUAL},
        "`thinking_count` is 7, and the rows train 2",
    ),
    "teacher forcing without target states": (
        {"thinking_mode": "projection", "teacher_forcing_steps": 0.5},
        "no target distribution gives, .*`teacher_forcing_steps=0.5`. Set that to 0",
    ),
    "all at once with random tokens": (
        {"thinking_mode": "embedding", "latent_iterations": 2},
        "`latent_iterations=2` needs .*thinking_token_policy='argmax'",
    ),
    "a text that does not begin with the marker": (
        {"answer_template": "is ={answer}"},
        "begins with the token 'i' .*`thinking_answer_start='='`. Let the template begin with that marker",
    ),
    "a last stage that leaves text": ({"latent_curriculum": [0, 1], "rows": EQUAL}, "Set `thinking_count`, or let"),
    "an adapter without thinking modules": (
        {
            "thinking_mode": "projection",
            "peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        },
        "cannot train the thinking modules.*Use `LoraConfig`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(make, name):
    settings, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        make(model=make_thinking_model("soft"), **settings)


def test_a_marker_of_two_tokens_is_refused(make):
    with pytest.raises(ValueError, match="begins with the token '##'.*a single token of the tokenizer"):
        make(model=make_thinking_model("soft", thinking_answer_start="####"), answer_template="####{answer}")


def test_a_schedule_that_chooses_by_itself_is_refused(make):
    with pytest.raises(ValueError, match="The schedule 'entropy' chooses itself which tokens are thoughts"):
        make(model=make_thinking_model("soft", thinking_schedule="entropy"))


def boundary_model(tokenizer, start):
    ids = dict(zip(("thinking_start_id", "thinking_end_id"), tokenizer.convert_tokens_to_ids([start, "="])))
    return make_thinking_model("soft", thinking_schedule="boundary", **ids)


def test_thoughts_between_two_tokens_are_trained_between_them(make, tokenizer):
    rows = [row | {"prompt": row["prompt"] + "!"} for row in TARGETS]
    trainer = make(rows=rows, model=boundary_model(tokenizer, "!"), max_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="Let prompts end with the first one, and `answer_template` begin with"):
        make(rows=rows, model=boundary_model(tokenizer, "?"))


@pytest.mark.parametrize("settings", [{}, {"thinking_mode": None}])
def test_a_model_that_does_not_think_is_refused(tmp_path, plain_checkpoint, settings):
    model = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    args = LatentSFTConfig(str(tmp_path), use_cpu=True, **settings)
    with pytest.raises(ValueError, match="needs a thinking model, got Qwen2ForCausalLM. Load the checkpoint with"):
        LatentSFTTrainer(
            model, args, train_dataset=TARGETS, processing_class=AutoTokenizer.from_pretrained(plain_checkpoint)
        )


def test_thoughts_without_a_mode_or_a_target_are_refused(make):
    with pytest.raises(
        ValueError, match=r"'none'` has no thoughts .*`latent_curriculum=\[0\]` trains on the discrete"
    ):
        make("answer", EQUAL, model=make_thinking_model("none"), thinking_mode="none", latent_curriculum=[2])


def test_gradient_checkpointing_that_was_switched_on_by_hand_is_refused(make):
    model = make_thinking_model("soft")
    model.gradient_checkpointing_enable()
    trainer = make(model=model)
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        trainer.train()


def test_a_tokenizer_without_an_end_is_refused(tmp_path, plain_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no `eos_token`"):
        make_latent_trainer(tmp_path, tokenizer)


def test_an_adapter_keeps_the_modules_that_its_user_names(make):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = make("answer", STEPS, thinking_mode="codi", model=make_thinking_model("codi"), peft_config=config)
    assert trainer.model.peft_config["default"].modules_to_save == ["lm_head", "thinking_projection"]


# Numbers of thoughts


def arguments(objective="answer", **given):
    fields = {"thinking_count": None, "latent_curriculum": None, "thinking_token_policy": None}
    return SimpleNamespace(objective=objective, **{**fields, "latent_tokens_per_step": 1, **given})


def rows(*lengths):
    return {"step_ids": [[[3]] * length for length in lengths], "target_ids": [[[3]] * length for length in lengths]}


def test_a_given_count_is_the_most_that_a_stage_of_answer_has():
    args = arguments(latent_curriculum=[1, 2, 99], latent_tokens_per_step=2, thinking_count=4)
    row = {"prompt_ids": [7], "step_ids": [[11], [12], [13]], "answer_ids": [14], "answer_prefix": 0}
    row |= {"target_ids": [], "target_weights": []}
    composed = [compose(row, stage, args, 0, 4) for stage in args.latent_curriculum]
    assert [(one.thoughts, one.text) for one in composed] == [(2, [12, 13, 14]), (4, [13, 14]), (4, [14])]
    assert thought_count("coconut", args, rows(3)) == 4


def test_unequal_chains_of_answer_are_shown_the_curriculum_that_takes_them():
    with pytest.raises(ValueError, match=r"the rows have 2, 6\..*`latent_curriculum=\[3\]`: rows with fewer steps"):
        thought_count("coconut", arguments(latent_tokens_per_step=2), rows(3, 1))


def test_unequal_targets_are_shown_a_mode_that_ends_by_itself():
    with pytest.raises(ValueError, match=r"`latent_curriculum=\[1\]`, or choose a mode that ends"):
        thought_count("pause", arguments("soft_targets"), rows(3, 1))


def test_a_count_that_the_rows_do_not_train_is_an_error():
    with pytest.raises(ValueError, match="`thinking_count` is 5, and the rows train 3 thoughts"):
        thought_count("soft", arguments("soft_targets", thinking_count=5), rows(3, 3))


@pytest.mark.parametrize(
    ("mode", "r_min", "warned"), [("projection", 0.9, True), ("embedding", 0.05, False), ("soft", 0.9, False)]
)
def test_narrow_gates_are_named_with_wide_ones(monkeypatch, mode, r_min, warned):
    said = []
    monkeypatch.setattr(latent_setup.logger, "warning", said.append)
    latent_setup.warn_of_narrow_gates(ThinkingQwen2Config(thinking_mode=mode, thinking_residual_r_min=r_min))
    assert len(said) == warned and all("at most 0.44" in message for message in said)
