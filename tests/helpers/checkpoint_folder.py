"""A whole checkpoint folder of tiny files."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from hf_evidenceflow.run_folder.manifest import write_manifest


def make_checkpoint(output_dir, step):
    path = output_dir / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": np.zeros((3, 5), dtype=np.float32)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, path / name)
    (path / "config.json").write_text("{}")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_manifest(path)
    return path
