"""Rows and notes on what was pretrained."""


def shown(accuracy: dict) -> str:
    return f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]"


def elmo_rows(measured: dict) -> list[list[str]]:
    names = {"forward_perplexity": "forward", "backward_perplexity": "backward"}
    rows = [[f"ELMo: {name} perplexity of a word", f"{measured[key]:.2f}"] for key, name in names.items()]
    rows.append(["perplexity of the words' frequencies alone", f"{measured['unigram_perplexity']:.2f}"])
    return [[*row, str(measured["words"])] for row in rows]


def bert_rows(measured: dict) -> list[list[str]]:
    return [
        ["BERT: loss of a masked token (nats)", f"{measured['mlm_loss']:.2f}", str(measured["masked_tokens"])],
        ["BERT: accuracy of masked tokens", shown(measured["mlm_accuracy"]), str(measured["masked_tokens"])],
        ["BERT: accuracy of next sentence", shown(measured["nsp_accuracy"]), str(measured["pairs"])],
    ]


def described(model, stage: dict, measured: dict) -> dict:
    """What a model measured, with its size and the time of its training."""
    return {**measured, "training_seconds": stage["seconds"], "parameters": model.num_parameters()}


def stage_note(name: str, numbers: dict, training: str) -> str:
    return f"{name}: {numbers['parameters']:,} parameters, {training}, {numbers['training_seconds']:.0f} seconds."
