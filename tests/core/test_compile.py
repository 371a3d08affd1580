"""`torch.compile` as the worker uses it: in place, so that names of weights stay."""

import shutil

import pytest
import torch

from btray.config import ModelConfig
from btray.core.zoo import create_model


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_computes_the_same_under_the_same_names():
    torch.manual_seed(0)
    network = create_model(ModelConfig(name="btray_cnn", dropout=0), 4).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected, names = network(images), list(network.state_dict())
        network.compile()
        torch.testing.assert_close(network(images), expected)
    assert list(network.state_dict()) == names
