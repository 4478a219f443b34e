"""What thinking models do not run with is refused by name, before weights are loaded."""

import pytest


pytest.importorskip("vllm")

import engines
import vllm

from hf_evidenceflow.integrations.vllm import support


pytestmark = pytest.mark.slow
REFUSED = {
    "pipeline parallelism": {"pipeline_parallel_size": 2},
    "speculative decoding": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "prompt embeddings": {"enable_prompt_embeds": True},
    "priority scheduling": {"scheduling_policy": "priority"},
}


def config_of(folder, **kwargs):
    """The config of an engine, without the engine."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32, **kwargs}
    return EngineArgs(model=folder, **arguments).create_engine_config()


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_a_place_for_thinking_are_refused_by_name(checkpoint, name):
    with pytest.raises(Exception, match=f"do not run with {name}: "):
        config_of(checkpoint(), **REFUSED[name])


@pytest.mark.parametrize("name", ["pipeline parallelism", "prompt embeddings", "priority scheduling"])
def test_mode_none_has_vllm_s_own_limits_only(checkpoint, name):
    config_of(checkpoint(), **REFUSED[name], hf_overrides={"thinking_mode": "none"})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"thinking_mode": "swi"}, "thinking_schedule='entropy'"),
        ({"thinking_mode": "gumbel"}, "thinking_noise='gumbel'"),
        ({"thinking_mode": "soft", "thinking_top_k": 5}, "thinking_top_k=5"),
        ({"thinking_mode": "soft", "thinking_mixer": "add"}, "thinking_mixer='add'"),
    ],
)
def test_a_way_of_thinking_that_vllm_cannot_follow_is_refused_by_name(checkpoint, fields, name):
    with pytest.raises(Exception, match=f"`{name}` .* does not run on vLLM"):
        config_of(checkpoint(), hf_overrides=fields)


def test_the_v1_runner_is_refused_with_the_variable_that_chooses_the_other(checkpoint, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(Exception, match="the V1 model runner: .* VLLM_USE_V2_MODEL_RUNNER=1"):
        config_of(checkpoint())


def test_another_scheduler_is_refused(checkpoint):
    with pytest.raises(Exception, match="thinking models need their own scheduler"):
        config_of(checkpoint(), scheduler_cls="vllm.v1.core.sched.scheduler.Scheduler")


def test_the_installed_version_is_inside_the_window_and_has_all_names():
    support.check_vllm()
    assert support.missing_names() == []


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0"])
def test_a_version_outside_of_the_window_is_refused_when_a_model_is_loaded(checkpoint, monkeypatch, version):
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(Exception, match=f">=0.28.*tested: 0.30.0.*the installed {version} is outside of it"):
        config_of(checkpoint())


def test_a_name_that_is_gone_is_refused_by_name(monkeypatch):
    path = "vllm.v1.worker.gpu.model_states.default.DefaultModelState"
    monkeypatch.setitem(support.NAMES, path, ("prepare_inputs", "prepare_what_is_gone"))
    with pytest.raises(ImportError, match="lacks .*DefaultModelState.prepare_what_is_gone, which thinking models"):
        support.check_vllm()


def test_the_module_of_a_hook_that_is_gone_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(support, "NAMES", {"vllm.v1.worker.gpu.hooks.Hook": ("call",)})
    with pytest.raises(ImportError, match=r"lacks vllm.v1.worker.gpu.hooks.Hook, which"):
        support.check_vllm()


def test_registration_twice_changes_nothing():
    from vllm import ModelRegistry

    from hf_evidenceflow.integrations.vllm import MODELS, register

    register()
    before = ModelRegistry.get_supported_archs()
    register()
    assert ModelRegistry.get_supported_archs() == before
    assert set(MODELS) <= set(before)


def test_a_checkpoint_that_lacks_thinking_weights_is_refused(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint(), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.thinking_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"not initialized from checkpoint.*thinking_projection.weight"):
        engines.make_engine(str(tmp_path))
