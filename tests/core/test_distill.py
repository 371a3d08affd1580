import pytest
import torch
from torch.nn import functional

from btray.config import ImageConfig
from btray.core.distill import Teacher, load_teacher
from btray.core.labels import CLASS_NAMES
from btray.core.loop import Precision
from btray.core.optim import DistillationLoss, Loss, with_teacher
from btray.errors import UserError

CPU = torch.device("cpu")
HASH = "0" * 64


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_weighted_mean_of_labels_and_divergence():
    student, teacher = draw(8, 4), draw(8, 4).flip(0)
    labels = torch.arange(8) % 4
    found = DistillationLoss(Loss(), 0.3, 2.0)(student, with_teacher(labels, teacher))
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    wanted = 0.7 * functional.cross_entropy(student, labels) + 0.3 * 4 * divergence
    torch.testing.assert_close(found, wanted)


def test_shares_of_mixed_images_are_kept():
    shares = draw(8, 4).softmax(1)
    loss = DistillationLoss(Loss(label_smoothing=0.1), 0.5, 1.0)
    same = draw(8, 4)
    found = loss(same, with_teacher(shares, same))
    torch.testing.assert_close(found, 0.5 * Loss(label_smoothing=0.1)(same, shares))


def test_portions_of_a_batch_add_up_to_its_loss():
    loss = DistillationLoss(Loss(), 0.5, 3.0)
    student, targets = draw(8, 4), with_teacher(torch.arange(8) % 4, draw(8, 4).flip(1))
    parts = [loss(s, t) for s, t in zip(student.chunk(4), targets.chunk(4), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(student, targets))


@pytest.mark.parametrize("size", [32, 48])
def test_a_teacher_answers_without_gradient_and_without_chance(tiny_bundle, size):
    teacher = Teacher(tiny_bundle, CPU, Precision.choose("float32", CPU))
    images = draw(5, 1, size, size).requires_grad_()
    before = torch.random.get_rng_state()
    logits = teacher(images)
    assert logits.shape == (5, 4)
    assert not logits.requires_grad
    assert torch.equal(logits, teacher(images))
    assert torch.equal(before, torch.random.get_rng_state())
    if size == 32:
        torch.testing.assert_close(logits, tiny_bundle.network()(images).detach())


def test_what_is_no_teacher(tiny_bundle):
    image = tiny_bundle.card.image
    assert load_teacher(tiny_bundle.uri, image, CLASS_NAMES, HASH).version == tiny_bundle.version
    other = image.model_copy(update={"size": 64})
    load_teacher(tiny_bundle.uri, other, CLASS_NAMES, HASH)
    with pytest.raises(UserError, match=r"image.mean=0.18, this run has 0.2"):
        load_teacher(tiny_bundle.uri, ImageConfig(size=32, mean=0.2), CLASS_NAMES, HASH)
    with pytest.raises(UserError, match=r"the data set has a, b"):
        load_teacher(tiny_bundle.uri, image, ("a", "b"), HASH)
    with pytest.raises(UserError, match=r"another data set or other splits"):
        load_teacher(tiny_bundle.uri, image, CLASS_NAMES, "1" * 64)
