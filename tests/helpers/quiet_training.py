"""Settings that short trainings of the tests share."""

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
STEP_BY_STEP = QUIET | {"logging_steps": 1, "gradient_checkpointing": False}
