import math

import pytest
import torch
from torch import nn

from btray.config import TrainConfig
from btray.core.optim import (
    CrossEntropy,
    create_optimizer,
    create_scheduler,
    inverse_frequency,
    learning_rate_factor,
)


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed(name):
    model = network()
    optimizer = create_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.05))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    by_name = {key: decay[id(parameter)] for key, parameter in model.named_parameters()}
    assert by_name == {
        "0.weight": 0.05,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "3.weight": 0.05,
        "3.bias": 0,
    }


def test_sgd_has_nesterov_momentum():
    optimizer = create_optimizer(network(), TrainConfig(optimizer="sgd"))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_adamw_decouples_the_decay():
    """A zero gradient leaves the decay alone to act: w (1 - lr * decay)."""
    model = nn.Linear(3, 3, bias=False)
    before = model.weight.detach().clone()
    optimizer = create_optimizer(model, TrainConfig(learning_rate=0.1, weight_decay=0.5))
    assert isinstance(optimizer, torch.optim.AdamW)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * 0.95)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_learning_rate_is_the_configured_one(name):
    optimizer = create_optimizer(network(), TrainConfig(optimizer=name, learning_rate=0.007))
    assert {group["lr"] for group in optimizer.param_groups} == {0.007}


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (10 + 30, 0.5 * (1 + math.cos(math.pi / 3))),
        (10 + 45, 0.5),
        (100, 0.0),
        (150, 0.0),
    ],
)
def test_warmup_then_half_a_cosine(step, factor):
    assert learning_rate_factor(step, warmup_steps=10, total_steps=100) == pytest.approx(factor)


def test_without_warmup_the_first_step_is_the_peak():
    assert learning_rate_factor(0, warmup_steps=0, total_steps=100) == 1


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_a_run_of_a_single_step_trains(warmup):
    assert learning_rate_factor(0, warmup_steps=warmup, total_steps=1) > 0


def rates(config, steps_per_epoch):
    optimizer = create_optimizer(network(), config)
    scheduler = create_scheduler(optimizer, config, steps_per_epoch)
    used = []
    for _ in range(config.epochs * steps_per_epoch):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used, optimizer.param_groups[0]["lr"]


def test_the_schedule_rises_to_the_peak_and_falls_to_nothing():
    used, after = rates(TrainConfig(epochs=5, warmup_epochs=1.5, learning_rate=0.01), 10)
    assert used[0] == pytest.approx(0.01 / 15)
    assert max(used) == pytest.approx(0.01) == used[14]
    assert used[:15] == sorted(used[:15])
    assert used[15:] == sorted(used[15:], reverse=True)
    assert used[-1] < 0.01 * 0.005
    assert after == pytest.approx(0)


def test_a_resumed_schedule_goes_on_where_it_was():
    config = TrainConfig(epochs=4)
    whole, _ = rates(config, 5)
    optimizer = create_optimizer(network(), config)
    scheduler = create_scheduler(optimizer, config, 5)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), scheduler.state_dict()
    resumed = create_optimizer(network(), config)
    continued = create_scheduler(resumed, config, 5)
    resumed.load_state_dict(states[0])
    continued.load_state_dict(states[1])
    assert resumed.param_groups[0]["lr"] == pytest.approx(whole[7])


def test_balanced_classes_weigh_one_each():
    assert inverse_frequency(torch.tensor([5, 5, 5])).tolist() == [1, 1, 1]


def test_weights_are_inverse_to_counts_with_mean_one_over_the_rows():
    counts = torch.tensor([10, 20, 70])
    weights = inverse_frequency(counts)
    torch.testing.assert_close(weights * counts, torch.full((3,), 100 / 3))
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)


def test_a_class_without_rows_weighs_nothing_and_leaves_the_mean_at_one():
    weights = inverse_frequency(torch.tensor([10, 0, 30]))
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.0, 2 / 3]))


def test_a_class_without_rows_keeps_a_smoothed_loss_finite():
    weights = inverse_frequency(torch.tensor([10, 0, 30]))
    loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)
    assert torch.isfinite(loss(torch.zeros(2, 3), torch.tensor([0, 2])))


def test_weighted_loss_of_a_batch_is_the_mean_of_its_shares():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 4, generator=generator), torch.tensor([0, 0, 0, 1, 1, 2, 3, 0])
    loss = CrossEntropy(torch.tensor([4.0, 0.5, 1.0, 2.0]), label_smoothing=0.1)
    shares = (loss(logits[:4], labels[:4]) + loss(logits[4:], labels[4:])) / 2
    torch.testing.assert_close(loss(logits, labels), shares)


def test_loss_without_weights_is_torchs_own():
    logits, labels = torch.eye(3), torch.tensor([0, 2, 1])
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels)
    torch.testing.assert_close(CrossEntropy(None, 0.2)(logits, labels), expected)
