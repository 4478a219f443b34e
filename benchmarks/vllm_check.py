"""
What only a GPU can tell of thinking models on vLLM: CUDA graphs, bf16, sleep mode, training in the trainer's process.

```bash
pip install 'hf-evidenceflow[vllm]'
python benchmarks/vllm_check.py --output results/gpu/vllm.json
.venv-vllm/bin/python benchmarks/vllm_check.py   # without a GPU: the same in little, with the harness of the tests
```

At most 8 minutes on one CUDA GPU. A part that fails is written down with its error, and the others run.

Parts: `graphs`, for each precision the largest gap between vLLM's log-probabilities and those of the training forward
over the recorded states, eager and with CUDA graphs, and the share of tokens that agree between the two; `sleep`,
whether an engine that slept at level 2 and got its weights again gives the same tokens; `training`, 20 steps of HRPO
with rollouts in the trainer's process (`vllm_training.py`); `speed`, tokens a second without and with thinking.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm" / "harness"))
import engines
import on_cpu  # noqa: F401
import torch
from rollout_speed import make_load, make_model
from timing import compare, has_failed, make_parser, prepare, run_parts, setting
from training_forward import compare as compare_forward
from vllm_speed import MODES, generate_with_vllm
from vllm_training import VOCABULARY, make_tokenizer, train


FIELDS = {"vocab_size": VOCABULARY, "thinking_answer_start": None}


def make_engine(folder, device: str, **kwargs):
    """An engine on the device; on a CPU with the harness of the tests."""
    if device == "cpu":
        return engines.make_engine(folder, **{**kwargs, "dtype": "float32", "enforce_eager": True})
    from vllm import LLM

    options = {"gpu_memory_utilization": 0.2, "max_model_len": 1024, "disable_log_stats": True}
    return LLM(model=folder, **{**options, **kwargs})


def graphs(folder: str, device: str) -> dict:
    """Gaps of log-probabilities by precision and mode, eager and with CUDA graphs."""
    from hf_evidenceflow.integrations.vllm.worker import take_thinking

    found = {}
    for dtype in ("float32", "bfloat16"):
        tokens = {}
        for eager in (True, False):
            llm = make_engine(folder, device, dtype=dtype, enforce_eager=eager)
            engines.model_state(llm).records.keeps = True
            outputs = engines.run(llm, engines.make_prompts(16))
            taken = take_thinking(engines.model_state(llm), engines.lengths_of(outputs))
            model = engines.load(folder)
            parts = [(output, output.outputs[0], *taken[output.request_id]) for output in outputs]
            gaps = [compare_forward(model, *part[:2], part[2].float(), part[3], {})[0] for part in parts]
            found[f"{dtype}, {'eager' if eager else 'graphs'}"] = {"largest_gap": max(gaps)}
            tokens[eager] = engines.tokens_of(outputs)
            engines.close(llm)
        same = [a == b for rows in zip(tokens[True], tokens[False]) for a, b in zip(*rows)]
        found[f"{dtype}, same tokens"] = sum(same) / len(same)
    return found


def sleep(folder: str, device: str) -> dict:
    """Whether the tokens are the same after a sleep at level 2."""
    llm = make_engine(folder, device, dtype="float32", enable_sleep_mode=device != "cpu")
    before = engines.tokens_of(engines.run(llm, engines.make_prompts(8)))
    llm.sleep(level=2)
    llm.wake_up()
    model = llm.llm_engine.model_executor.driver_worker.model_runner.model
    for name, parameter in engines.load(folder).named_parameters():
        model.load_weights([(name, parameter.data.to(next(model.parameters()).device))])
    llm.reset_prefix_cache()
    after = engines.tokens_of(engines.run(llm, engines.make_prompts(8)))
    engines.close(llm)
    return {"same": after == before}


def training(folder: str, device: str) -> dict:
    """Rewards and parity gaps of HRPO in the trainer's process."""
    return train(folder, "projection", 3 if device == "cpu" else 20, 1, with_vllm=True, use_cpu=device == "cpu")


def speed(folder: str, device: str) -> dict:
    """Tokens a second by mode."""
    load = make_load(*((2, 2, 20) if device == "cpu" else (16, 16, 1)))
    model, found = make_model("projection"), {}
    weights = tempfile.mkdtemp()
    model.save_pretrained(weights)
    for mode in MODES:
        overrides = {"thinking_mode": mode}
        llm = make_engine(weights, device, dtype="bfloat16", hf_overrides=overrides, skip_tokenizer_init=True)
        if mode != "none":
            engines.model_state(llm).records.keeps = True
        rows = compare({mode: partial(generate_with_vllm, llm, load, mode)}, 2)
        found[mode] = round(int(load[2].sum()) / rows[mode]["seconds"], 1)
        engines.close(llm)
    return found


PARTS = {part.__name__: part for part in (graphs, sleep, training, speed)}


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the parts look into the engine
    prepare(args)
    folder = engines.make_checkpoint(tempfile.mkdtemp(), make_tokenizer(), **FIELDS)
    parts = {name: partial(PARTS[name], folder, device) for name in args.parts}
    return run_parts(parts, {"setting": setting(args, "vllm_check", argv)}, args.output)


if __name__ == "__main__":
    sys.exit(has_failed(main()))
