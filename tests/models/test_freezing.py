"""Training of some modules only."""

import pytest
from tiny_tinyseek import tiny_tinyseek

from hf_evidenceflow.models.freezing import freeze_all_but


def test_the_named_modules_alone_are_trained():
    model = tiny_tinyseek()
    freeze_all_but(model, ["lm_head", "model.layers.0.mlp.gate.weight"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"lm_head.weight", "lm_head.bias", "model.layers.0.mlp.gate.weight"}


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"no parameters under 'head'.*model, lm_head"):
        freeze_all_but(tiny_tinyseek(), ["head"])
