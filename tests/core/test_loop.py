import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from btray.config import ModelConfig, TrainConfig
from btray.core.loop import Precision, _backward, first_non_finite, predict_logits, train_epoch
from btray.core.zoo import create_model
from btray.errors import UserError

CPU = torch.device("cpu")
FLOAT32 = Precision(CPU, torch.float32)
BFLOAT16 = Precision(CPU, torch.bfloat16)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    )


def batches(count=8, size=16, scale=1.0):
    """Dark and bright images under noise: easy, but not at once."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        labels = torch.randint(2, (size,), generator=generator)
        images = torch.randn(size, 1, 8, 8, generator=generator)
        yield (images + labels.view(-1, 1, 1, 1)) * scale, labels


class Recorder(torch.optim.SGD):
    """Plain SGD that remembers the norm of every gradient it is given."""

    def __init__(self, parameters, learning_rate=0.05):
        super().__init__(parameters, lr=learning_rate)
        self.norms = []

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self.norms.append(
            float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
        )
        return super().step(closure)


def train(model, pairs, precision=FLOAT32, on_step=lambda step, loss: None, **settings):
    optimizer = Recorder(model.parameters())
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    config = TrainConfig(**settings)
    losses = train_epoch(
        model, pairs, nn.CrossEntropyLoss(), optimizer, scheduler, config, precision, on_step
    )
    return losses, optimizer, scheduler


# Training


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_the_loss_falls(precision):
    losses, _, _ = train(network(), batches(60), precision)
    assert losses[-10:].mean() < 0.5 * losses[:3].mean()


def test_there_is_one_loss_a_step_detached_and_float32():
    losses, _, _ = train(network(), batches(5))
    assert (losses.shape, losses.dtype, losses.requires_grad) == ((5,), torch.float32, False)


def test_the_loss_is_float32_under_bfloat16():
    losses, _, _ = train(network(), batches(2), BFLOAT16)
    assert losses.dtype == torch.float32


def test_the_schedule_steps_with_every_batch():
    _, optimizer, scheduler = train(network(), batches(7))
    assert (len(optimizer.norms), scheduler.last_epoch) == (7, 7)


def test_every_step_is_told_with_its_loss():
    told = []
    losses, _, _ = train(network(), batches(4), on_step=lambda *news: told.append(news))
    assert [step for step, _ in told] == [0, 1, 2, 3]
    assert torch.equal(torch.stack([loss for _, loss in told]), losses)


def test_the_network_is_put_in_training_mode():
    model = network().eval()
    train(model, batches(1))
    assert model.training


def test_the_same_start_and_batches_give_the_same_losses():
    first, second = (train(network(), batches(5))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_are_clipped_to_their_largest_norm():
    _, optimizer, _ = train(network(), batches(4, scale=20), gradient_clip=0.01)
    assert optimizer.norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_a_clip_of_zero_leaves_gradients_alone():
    _, free, _ = train(network(), batches(4), gradient_clip=0)
    _, wide, _ = train(network(), batches(4), gradient_clip=1e6)
    assert free.norms == pytest.approx(wide.norms)
    assert min(free.norms) > 0.01


def test_gradients_do_not_add_up_over_steps():
    pair = next(iter(batches(1)))
    model = network()
    optimizer = Recorder(model.parameters(), learning_rate=0.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    loss, quiet = nn.CrossEntropyLoss(), lambda step, loss: None
    train_epoch(model, [pair] * 3, loss, optimizer, scheduler, TrainConfig(), FLOAT32, quiet)
    assert optimizer.norms == pytest.approx([optimizer.norms[0]] * 3)


def test_a_loss_that_is_no_number_is_reported_not_raised():
    pairs = list(batches(4))
    pairs[2][0][0, 0, 0, 0] = float("nan")
    losses, _, _ = train(network(), pairs)
    assert first_non_finite(losses) == 2


# Prediction


def images(rows):
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def trained():
    model = network()
    train(model, batches(10))
    return model


def test_logits_come_in_the_order_of_the_rows_whatever_the_batches():
    model, rows = trained(), images(11)
    whole = predict_logits(model, [rows], FLOAT32)
    parts = predict_logits(model, iter(rows.split(3)), FLOAT32)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(predict_logits(model, [rows.flip(0)], FLOAT32), whole.flip(0))


def test_two_views_are_the_image_and_its_mirror_image():
    model, rows = trained(), images(6)
    seen, mirrored = (predict_logits(model, [some], FLOAT32) for some in (rows, rows.flip(-1)))
    both = predict_logits(model, [rows], FLOAT32, views=2)
    torch.testing.assert_close(both, (seen + mirrored) / 2)
    assert not torch.allclose(both, seen)


def test_a_batch_in_portions_gives_the_same_gradients():
    """Without batch norm and dropout, whose portions differ."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16, 3))
    rows, labels = torch.rand(6, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    gradients = []
    for portions in (1, 3):
        model.zero_grad()
        loss = _backward(model, rows, labels, torch.nn.CrossEntropyLoss(), portions, FLOAT32)
        gradients.append((float(loss), model[1].weight.grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_prediction_runs_in_evaluation_mode():
    model = trained()
    statistics = model[1].running_mean.clone()
    predict_logits(model, [images(4)], FLOAT32)
    assert not model.training
    assert torch.equal(model[1].running_mean, statistics)


def test_prediction_leaves_no_gradient():
    model = trained()
    model.zero_grad(set_to_none=True)
    logits = predict_logits(model, [images(4)], FLOAT32)
    assert not logits.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


class Remembering(nn.Module):
    """Computes a table at its first call and keeps it, as some of timm's networks do."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(64, 2), None

    def forward(self, images):
        if self.table is None:
            self.table = torch.tensor([1.0, 2.0])
        return self.layer(images.flatten(1)) * self.table


def test_a_network_that_remembers_a_prediction_can_train_on():
    model = Remembering()
    predict_logits(model, [images(4)], FLOAT32)
    losses, _, _ = train(model, batches(3))
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_logits_are_float32_on_the_cpu(precision):
    logits = predict_logits(trained(), [images(4)], precision)
    assert (logits.dtype, logits.device, logits.shape) == (torch.float32, CPU, (4, 2))


def test_bfloat16_is_close_to_float32():
    model, rows = trained(), images(64)
    exact, rough = (predict_logits(model, [rows], p) for p in (FLOAT32, BFLOAT16))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.05)


def test_no_batches_give_no_rows():
    assert len(predict_logits(trained(), [], FLOAT32)) == 0


# Precision


@pytest.mark.parametrize(
    ("setting", "device", "native", "dtype"),
    [
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("float32", "cpu", False, torch.float32),
        ("bfloat16", "cuda", False, torch.bfloat16),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_the_type_is_chosen_by_setting_and_device(monkeypatch, setting, device, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    chosen = Precision.choose(setting, torch.device(device))
    assert chosen == Precision(torch.device(device), dtype)


@pytest.mark.parametrize(
    ("matrix_units", "name", "dtype"),
    [
        (True, "btray_cnn", torch.bfloat16),
        (True, "mobilenetv3_small_050", torch.float32),
        (False, "btray_cnn", torch.float32),
    ],
)
def test_a_cpu_takes_bfloat16_where_it_is_faster(monkeypatch, matrix_units, name, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": matrix_units})
    network = create_model(ModelConfig(name=name), 4)
    assert Precision.choose("auto", torch.device("cpu"), network).dtype == dtype
    assert Precision.choose("auto", torch.device("cpu")).dtype == torch.float32


def test_float16_without_a_gpu_is_the_users_mistake():
    with pytest.raises(UserError, match="needs a GPU"):
        Precision.choose("float16", torch.device("cpu"))


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_autocast_computes_in_the_chosen_type(precision):
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == precision.dtype


# Losses


@pytest.mark.parametrize(
    ("losses", "index"),
    [
        ([1.0, 2.0], None),
        ([], None),
        ([1.0, float("nan"), float("nan")], 1),
        ([float("inf"), 1.0], 0),
        ([1.0, 1.0, -float("inf")], 2),
    ],
)
def test_the_first_loss_that_is_no_finite_number(losses, index):
    assert first_non_finite(torch.tensor(losses)) == index
