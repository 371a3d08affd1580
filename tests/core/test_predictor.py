import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from btray.core.answers import Prediction, answer_row
from btray.core.bundle import Bundle
from btray.core.calibration import Calibration, calibrated, energy
from btray.core.images import ImageError
from btray.core.labels import CLASS_NAMES
from btray.core.predictor import Predictor


def encoded(seed, size=(40, 40), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(0), encoded(1, (50, 30)), encoded(2, (32, 32), "JPEG"), encoded(3, (20, 90))]


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return Predictor(tiny_bundle, "cpu")


class Fixed(nn.Module):
    """A network that has one answer."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def answer_of(tiny_bundle, logits, set_threshold, ood_threshold):
    """Return the answer of a network with these logits and these constants."""
    calibration = Calibration(
        temperature=1,
        coverage=0.95,
        set_threshold=set_threshold,
        ood_threshold=ood_threshold,
        rows=9,
    )
    card = tiny_bundle.card.model_copy(update={"calibration": calibration})
    predictor = Predictor(Bundle(tiny_bundle.uri, card, tiny_bundle.weights), "cpu")
    predictor.network = Fixed(logits)
    return predictor.predict([IMAGES[0]])[0]


def test_predict_is_the_way_over_prepare_and_logits(predictor):
    squares = np.stack([predictor.prepare(data) for data in IMAGES])
    logits = predictor.logits(squares)
    probabilities = calibrated(logits, predictor.bundle.card.calibration)
    answers = predictor.predict(IMAGES)
    assert [list(a.probabilities.values()) for a in answers] == probabilities.tolist()
    assert [a.ood_score for a in answers] == energy(logits.astype(np.float64)).tolist()
    tops = [CLASS_NAMES[k] for k in logits.argmax(axis=1)]
    assert [a.class_name for a in answers] == tops


def test_prepared_images_and_logits_have_their_shapes(predictor):
    square = predictor.prepare(IMAGES[1])
    assert (square.shape, square.dtype) == ((32, 32), np.uint8)
    logits = predictor.logits(square[None])
    assert (logits.shape, logits.dtype) == ((1, 4), np.float32)


def test_logits_are_those_of_the_network_on_normalised_pixels(predictor):
    squares = np.stack([predictor.prepare(data) for data in IMAGES])
    image = predictor.bundle.card.image
    batch = (squares[:, None].astype(np.float32) / 255 - image.mean) / image.std
    with torch.no_grad():
        expected = predictor.network(torch.from_numpy(batch.astype(np.float32))).numpy()
    assert predictor.logits(squares) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_images_get_different_answers(predictor):
    assert len({answer.ood_score for answer in predictor.predict(IMAGES)}) == len(IMAGES)


def test_probabilities_of_all_classes_add_up_to_one(predictor):
    for answer in predictor.predict(IMAGES):
        assert tuple(answer.probabilities) == CLASS_NAMES
        assert math.fsum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)


def test_a_batch_answers_as_single_images_do(predictor):
    single = [predictor.predict([data])[0] for data in IMAGES]
    for one, of_many in zip(single, predictor.predict(IMAGES), strict=True):
        assert of_many.probabilities == pytest.approx(one.probabilities, abs=1e-6)
        assert of_many.ood_score == pytest.approx(one.ood_score, abs=1e-5)


def test_the_same_image_always_gets_the_same_answer(predictor):
    assert predictor.predict(IMAGES) == predictor.predict(IMAGES)


def test_unusable_images_keep_their_place(predictor):
    mixed = [b"", IMAGES[0], b"no image", IMAGES[1], IMAGES[2][:-200]]
    answers = predictor.predict(mixed)
    kinds = [type(answer) for answer in answers]
    assert kinds == [ImageError, Prediction, ImageError, Prediction, ImageError]
    assert [answers[1], answers[3]] == predictor.predict([IMAGES[0], IMAGES[1]])


def test_nothing_but_unusable_images(predictor):
    codes = [answer.code for answer in predictor.predict([b"", b"no image"])]
    assert codes == ["empty", "not_an_image"]


def test_no_images(predictor):
    assert predictor.predict([]) == []


def test_a_sure_answer_is_a_set_of_one(tiny_bundle):
    answer = answer_of(tiny_bundle, [9.0, 0, 0, 0], set_threshold=0.5, ood_threshold=0)
    assert answer.prediction_set == ("glioma",)
    assert (answer.abstain, answer.out_of_distribution) == (False, False)


def test_several_probable_classes_abstain(tiny_bundle):
    answer = answer_of(tiny_bundle, [0, 3.0, 0, 3.1], set_threshold=0.3, ood_threshold=0)
    assert answer.class_name == "pituitary"
    assert answer.prediction_set == ("meningioma", "pituitary")
    assert (answer.abstain, answer.out_of_distribution) == (True, False)


def test_no_probable_class_abstains(tiny_bundle):
    answer = answer_of(tiny_bundle, [0, 0, 0, 0.1], set_threshold=0.9, ood_threshold=0)
    assert answer.prediction_set == ()
    assert (answer.abstain, answer.out_of_distribution) == (True, False)


def test_a_class_that_just_reaches_the_threshold_is_in_the_set(tiny_bundle):
    answer = answer_of(tiny_bundle, [0.0, 0, 0, 0], set_threshold=0.25, ood_threshold=0)
    assert answer.prediction_set == CLASS_NAMES


def test_a_threshold_of_zero_takes_every_class(tiny_bundle):
    answer = answer_of(tiny_bundle, [5e3, 0, 0, 0], set_threshold=0, ood_threshold=0)
    assert answer.prediction_set == CLASS_NAMES
    assert answer.abstain


def test_a_strange_image_abstains_however_sure(tiny_bundle):
    answer = answer_of(tiny_bundle, [9.0, 0, 0, 0], set_threshold=0.5, ood_threshold=-9.5)
    assert answer.prediction_set == ("glioma",)
    assert answer.ood_score == pytest.approx(-9.0004, abs=1e-4)
    assert (answer.abstain, answer.out_of_distribution) == (True, True)


def test_a_score_at_the_threshold_is_not_strange(tiny_bundle):
    score = energy(np.array([[9.0, 0, 0, 0]]))[0]
    answer = answer_of(tiny_bundle, [9.0, 0, 0, 0], set_threshold=0.5, ood_threshold=score)
    assert not answer.out_of_distribution


def test_the_row_of_an_answer(predictor, tiny_bundle):
    answer = predictor.predict(IMAGES[:1])[0]
    row = answer_row(answer, "tiny", tiny_bundle.version)
    assert row == {
        "class": answer.class_name,
        "probabilities": answer.probabilities,
        "prediction_set": list(answer.prediction_set),
        "abstain": answer.abstain,
        "out_of_distribution": answer.out_of_distribution,
        "ood_score": answer.ood_score,
        "model": {"name": "tiny", "version": tiny_bundle.version},
    }
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_row_of_an_error(tiny_bundle):
    row = answer_row(ImageError("empty", "the file is empty"), "tiny", tiny_bundle.version)
    assert row == {"error": {"code": "empty", "message": "the file is empty"}}
