import pytest
import torch
from torch import nn

from btray.config import ModelConfig, TrainConfig
from btray.core.freezing import freeze, frozen_steps
from btray.core.loop import Precision, train_epoch
from btray.core.optim import Loss, create_optimizer, create_scheduler
from btray.core.zoo import create_model


@pytest.mark.parametrize(
    ("settings", "losses", "steps"),
    [
        ({}, [1.0, 2.0, 3.0], 0),
        ({"freeze_epochs": 2}, [], 20),
        ({"freeze_epochs": 1.55}, [], 16),
        ({"freeze_epochs": 5, "freeze_patience": 1}, [1.0, 0.9], 50),
        ({"freeze_epochs": 5, "freeze_patience": 1}, [1.0, 0.9, 0.9], 30),
        ({"freeze_epochs": 5, "freeze_patience": 1}, [1.0, 0.9, 0.9, 0.1], 30),
        ({"freeze_epochs": 2, "freeze_patience": 1}, [1.0, 0.9, 0.9], 20),
    ],
)
def test_how_long_the_backbone_stands_still(settings, losses, steps):
    assert frozen_steps(TrainConfig(**settings), 10, losses) == steps


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_model(ModelConfig(name="resnet10t"), 4)


def trained(network, still):
    config = TrainConfig(warmup_epochs=0)
    optimizer = create_optimizer(network, config)
    images = torch.rand(4, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    batches = [(images, torch.arange(4))] * 2
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scheduler = create_scheduler(optimizer, config, 2)
    precision = Precision.choose("float32", torch.device("cpu"))
    train_epoch(
        network, batches, Loss(), optimizer, scheduler, config, precision, lambda *_: None, still
    )
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def norms(network):
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return {key for key in network.state_dict() if key.rpartition(".")[0] in layers}


def test_only_the_classifier_learns_while_the_backbone_stands_still(network):
    assert trained(network, freeze(network, True, False)) == {"fc.weight", "fc.bias"}


def test_batch_norm_stands_still_alone(network):
    changed = trained(network, freeze(network, False, True))
    assert not changed & norms(network)
    assert {"fc.weight", "conv1.0.weight", "layer4.0.conv2.weight"} <= changed


def test_everything_learns_again(network):
    freeze(network, True, False)
    assert freeze(network, False, False) == []
    assert trained(network, []) == set(network.state_dict())


def test_our_own_network_has_a_classifier():
    ours = create_model(ModelConfig(), 4)
    assert trained(ours, freeze(ours, True, False)) == {"head.weight", "head.bias"}
