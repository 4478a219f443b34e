"""Stop strings: `generate` hands no tokenizer on to a decoding method that is not its own."""

from transformers.generation import StoppingCriteriaList, StopStringCriteria


def with_stop_strings(tokenizer, arguments):
    """The arguments of `generate` with the stop strings among the stopping criteria."""
    strings = arguments.pop("stop_strings", None)
    if strings is None:
        return arguments
    if tokenizer is None:
        raise ValueError(f"`stop_strings={strings!r}` needs a tokenizer to be found. Pass `tokenizer=`.")
    criteria = [*(arguments.get("stopping_criteria") or ()), StopStringCriteria(tokenizer, strings)]
    return {**arguments, "stopping_criteria": StoppingCriteriaList(criteria)}
