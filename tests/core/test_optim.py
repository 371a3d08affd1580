import math

import pytest
import torch
from torch import nn

from btray.config import ModelConfig, TrainConfig
from btray.core.optim import (
    LearningRate,
    Loss,
    create_optimizer,
    create_scheduler,
    inverse_frequency,
)
from btray.core.zoo import create_model
from btray.errors import UserError


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
    rate = LearningRate(TrainConfig(epochs=10, warmup_epochs=1), steps_per_epoch=10)
    assert rate(step) == pytest.approx(factor)


def test_without_warmup_the_first_step_is_the_peak():
    assert LearningRate(TrainConfig(epochs=10, warmup_epochs=0), 10)(0) == 1


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "step", "plateau"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_of_a_single_step_trains(warmup, schedule):
    config = TrainConfig(epochs=2, warmup_epochs=warmup, schedule=schedule)
    assert LearningRate(config, steps_per_epoch=1)(0) > 0


def test_one_cycle_rises_and_falls_in_half_cosines():
    config = TrainConfig(epochs=10, warmup_epochs=3, schedule="one_cycle")
    factors = [LearningRate(config, 10)(step) for step in range(100)]
    assert factors[14] == pytest.approx(0.5)
    assert max(factors) == factors[29] == 1
    assert factors[65] == pytest.approx(0.5)


def test_step_decays_every_so_many_epochs():
    config = TrainConfig(epochs=10, warmup_epochs=1, schedule="step", decay_epochs=3)
    rate = LearningRate(config, 10)
    assert [rate(step) for step in (10, 39, 40, 70)] == pytest.approx([1, 1, 0.1, 0.01])


def test_plateau_decays_when_the_validation_loss_stalls():
    config = TrainConfig(warmup_epochs=0, schedule="plateau", decay_epochs=2, decay_factor=0.5)
    rate = LearningRate(config, 10)
    factors = []
    for step, loss in enumerate([1.0, 0.9, 0.95, 0.9, 0.8, 0.85, 0.9]):
        rate.observe(loss)
        factors.append(rate(step))
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_a_resumed_plateau_has_not_forgotten():
    config = TrainConfig(warmup_epochs=0, schedule="plateau", decay_epochs=2)
    first, second = (create_scheduler(create_optimizer(network(), config), config, 5) for _ in "ab")
    for loss in (1.0, 1.1, 1.2):
        first.lr_lambdas[0].observe(loss)
    second.load_state_dict(first.state_dict())
    assert vars(second.lr_lambdas[0]) == vars(first.lr_lambdas[0])
    assert second.lr_lambdas[0](0) == pytest.approx(0.1)


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
    loss = Loss(torch.tensor([4.0, 0.5, 1.0, 2.0]), label_smoothing=0.1)
    shares = (loss(logits[:4], labels[:4]) + loss(logits[4:], labels[4:])) / 2
    torch.testing.assert_close(loss(logits, labels), shares)


def test_loss_without_weights_is_torchs_own():
    logits, labels = torch.eye(3), torch.tensor([0, 2, 1])
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels)
    torch.testing.assert_close(Loss(None, 0.2)(logits, labels), expected)


def test_an_unknown_optimiser_is_the_users_mistake():
    with pytest.raises(UserError, match=r"none is called 'adamx'; nearest: .*adam"):
        create_optimizer(network(), TrainConfig(optimizer="adamx"))


def test_lower_layers_learn_slower():
    model = create_model(ModelConfig(name="resnet10t"), 4)
    optimizer = create_optimizer(model, TrainConfig(learning_rate=0.01, layer_decay=0.5))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(model.fc.weight)] == pytest.approx(0.01)
    assert rate[id(model.conv1[0].weight)] < rate[id(model.layer3[0].conv1.weight)] < 0.01


def test_focal_loss_without_focus_is_cross_entropy():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    for smoothing in (0.0, 0.2):
        plain, focal = Loss(None, smoothing), Loss(None, smoothing, focal_gamma=0.0)
        torch.testing.assert_close(focal(logits, labels), plain(logits, labels))


def test_focal_loss_of_one_image():
    """-(1 - p)^gamma log p (Lin et al. 2017, equation 4)."""
    logits = torch.tensor([[0.8, 0.2]]).log()
    expected = -(0.2**2) * math.log(0.8)
    assert float(Loss(focal_gamma=2)(logits, torch.tensor([0]))) == pytest.approx(expected)


def test_shares_of_classes_are_taken_for_labels():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 3])
    shares = nn.functional.one_hot(labels, 4).float()
    for loss in (Loss(), Loss(focal_gamma=2), Loss(torch.tensor([1.0, 2, 3, 4]), 0.1)):
        torch.testing.assert_close(loss(logits, shares), loss(logits, labels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adahessian", "needs second derivatives"),
        ("fusedsgd", "cannot be used: (APEX|CUDA required)"),
    ],
)
def test_an_optimiser_that_needs_what_is_not_here(name, message):
    with pytest.raises(UserError, match=message) as error:
        create_optimizer(torch.nn.Linear(2, 2), TrainConfig(optimizer=name))
    assert "\n" not in str(error.value)
