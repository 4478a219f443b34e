"""What `load_model` refuses before it reads a weight."""

import pytest

from hf_evidenceflow.models.loading import load_model


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device, plain_checkpoint):
    with pytest.raises(ValueError, match=rf"`device` must be one that this machine has \(cpu.*got '{device}'"):
        load_model(str(plain_checkpoint), device=device)


@pytest.mark.parametrize("dtype", ["float12", "int8", "nn"])
def test_a_dtype_that_is_none_is_refused(dtype, plain_checkpoint):
    with pytest.raises(ValueError, match=f"`dtype` must be a type such as 'float32'.*got '{dtype}'"):
        load_model(str(plain_checkpoint), dtype=dtype)
