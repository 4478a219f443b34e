"""What the engine of a thinking model needs, set when vLLM completes its config."""

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from .support import check_vllm, refuse_method, refuse_settings


SCHEDULER = "hf_evidenceflow.integrations.vllm.scheduler.thinking_scheduler"


class ThinkingEngineConfig(VerifyAndUpdateConfig):
    """Refuses what cannot work, and takes the scheduler that keeps completions apart in the prefix cache."""

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        check_vllm()
        if vllm_config.model_config.hf_config.thinking_mode == "none":
            return
        refuse_method(vllm_config.model_config.hf_config)
        refuse_settings(vllm_config)
        scheduling = vllm_config.scheduler_config
        if scheduling.scheduler_cls not in (None, SCHEDULER):
            raise ValueError(
                f"`scheduler_cls={scheduling.scheduler_cls!r}`: thinking models need their own scheduler, which keeps "
                "their completions apart in the prefix cache. Leave it out, or serve without thinking, "
                "`hf_overrides={'thinking_mode': 'none'}`."
            )
        scheduling.scheduler_cls = SCHEDULER
