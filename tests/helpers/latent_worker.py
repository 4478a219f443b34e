"""
Two optimizer steps of LatentSFTTrainer, in one process or in two, plain or sharded; each rank saves its log, the first
one the weights.
"""

import json
import sys
from pathlib import Path

from latent_trainers import make_latent_trainer, make_thinking_model
from sharded_worker import UNSHARDED, shard_on_cpu
from transformers import AutoTokenizer


# In one process a step takes the four rows at once, or those of each rank one after the other
BATCHES = {
    "soft_targets": {"one": (4, 1), "two": (1, 2)},
    "answer": {"one": (4, 1), "two": (1, 2)},
    "distill": {"one": (2, 2), "two": (2, 1)},
}
SETTINGS = {
    "soft_targets": {"thinking_mode": "embedding", "thinking_token_policy": "argmax"},
    "answer": {"latent_curriculum": [1]},
    "distill": {},
}


def main(checkpoint, output, strategy, objective, further=""):
    shard_on_cpu(strategy)
    size, accumulation = BATCHES[objective]["one" if strategy == "one" else "two"]
    settings = dict(SETTINGS[objective])
    if further == "projection":
        settings["thinking_mode"] = further
    earlier = further == "earlier"
    if earlier:  # of some ranks no row thinks
        settings |= {"latent_curriculum": [0, 1], "latent_steps_per_stage": 1, "earlier_stage_share": 0.5}
    mode = settings.get("thinking_mode")
    trainer = make_latent_trainer(
        output,
        AutoTokenizer.from_pretrained(checkpoint),
        objective,
        model=None if mode is None else make_thinking_model(mode, thinking_token_policy="argmax"),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=4 if earlier else 2,
        use_cpu=strategy in UNSHARDED,
        adam_epsilon=1.0,  # updates then follow the gradients, and differ no more than these
        learning_rate=0.5,
        ddp_timeout=60,
        **settings,
    )
    trainer.train()
    trainer.save_model()
    path = Path(output, f"log-{trainer.accelerator.process_index}.json")
    path.write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(*sys.argv[1:])
