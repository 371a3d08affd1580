import numpy as np
import pytest
import torch

from btray.config import Config, ImageConfig
from btray.core.bundle import joined, load_bundle, save_bundle
from btray.core.calibration import energy
from btray.core.card import Member
from btray.core.ensemble import mix_logits
from btray.core.layout import CARD
from btray.core.loop import Precision, predict_logits
from btray.core.predictor import Predictor
from btray.core.tensors import normalise, to_unit
from btray.core.zoo import create_model
from btray.errors import UserError

VIEWS = (1, 2)
VOTES = (0.75, 0.25)


@pytest.fixture
def logits():
    return torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)).double() * 4


@pytest.fixture
def squares():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)


@pytest.fixture
def ensemble(make_bundle, tmp_path):
    """Two networks, the second with two views; the folder and the bundle."""
    single = make_bundle(tmp_path / "single")
    weights, members = [], []
    for seed, (views, vote) in enumerate(zip(VIEWS, VOTES, strict=True)):
        model = Config().model.model_copy(update={"views": views})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = create_model(model, 4, 32).state_dict()
        state["head.weight"] *= 100
        weights.append({name: tensor.contiguous() for name, tensor in state.items()})
        members.append(
            Member(
                name=f"m{seed}",
                version=f"v{seed}",
                weight=vote,
                fold=seed,
                model=model,
                metrics={},
                run=None,
                epoch=0,
                seed=seed,
            )
        )
    card = single.card.model_copy(update={"members": tuple(members)})
    return save_bundle(tmp_path / "ensemble", joined(weights), card)


def test_the_answer_is_the_weighted_mean_of_the_probabilities(logits):
    weights = [0.5, 0.3, 0.2]
    mixed = mix_logits(logits, weights)
    shares = torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close(mixed.softmax(1), (logits.softmax(2) * shares).sum(0))


def test_the_energy_is_the_weighted_mean_of_the_energies(logits):
    weights = [0.5, 0.3, 0.2]
    found = energy(mix_logits(logits, weights).numpy())
    wanted = sum(w * energy(z.numpy()) for w, z in zip(weights, logits, strict=True))
    np.testing.assert_allclose(found, wanted)


def test_one_network_alone_answers_as_it_is(logits):
    torch.testing.assert_close(mix_logits(logits[:1], [1.0]), logits[0])


def test_very_sure_networks_give_no_infinities():
    sure = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    assert mix_logits(sure, [0.5, 0.5]).softmax(1).tolist() == [[0.5, 0.5]]


def test_an_ensemble_answers_wherever_a_bundle_does(ensemble, squares):
    opened = load_bundle(ensemble.uri)
    found = Predictor(opened, "cpu").logits(squares)
    images = normalise(to_unit(torch.from_numpy(squares)), ImageConfig(size=32))
    exact = Precision.choose("float32", torch.device("cpu"))
    shares = 0
    for number, (views, vote) in enumerate(zip(VIEWS, VOTES, strict=True)):
        network = create_model(Config().model, 4, 32)
        network.load_state_dict(opened.weights_of(number))
        own = predict_logits(network, [images], exact, views)
        shares = shares + vote * own.softmax(1)
    torch.testing.assert_close(torch.from_numpy(found).softmax(1), shares)


def test_a_part_of_an_ensemble_is_another_bundle(ensemble, squares):
    part = ensemble.with_members([1])
    assert part.version != ensemble.version
    assert [(m.name, m.weight) for m in part.card.members] == [("m1", 1.0)]
    assert ensemble.card.folds == (0, 1)
    assert part.card.folds == (1,)
    found = Predictor(part, "cpu").logits(squares)
    assert not np.allclose(found, Predictor(ensemble, "cpu").logits(squares))


def test_a_bundle_in_half_precision_is_loaded_as_float32(make_bundle, squares, tmp_path):
    whole = make_bundle(tmp_path / "whole")
    half = save_bundle(
        tmp_path / "half",
        whole.weights,
        whole.card.model_copy(update={"precision": "float16"}),
    )
    size = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")]
    assert size[1] < 0.52 * size[0]
    for name, tensor in half.weights.items():
        before = whole.weights[name]
        assert tensor.dtype == before.dtype
        assert torch.equal(tensor, before.half().float() if before.ndim > 1 else before), name
    found, wanted = (Predictor(b, "cpu").logits(squares) for b in (half, whole))
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert not np.array_equal(found, wanted)


def test_weights_beyond_half_precision_are_refused(make_bundle, tmp_path):
    whole = make_bundle(tmp_path / "whole")
    weights = whole.weights | {"head.weight": whole.weights["head.weight"] + 1e6}
    card = whole.card.model_copy(update={"precision": "float16"})
    with pytest.raises(UserError, match=r"head.weight holds values beyond float16"):
        save_bundle(tmp_path / "half", weights, card)
    assert not (tmp_path / "half" / CARD).exists()
