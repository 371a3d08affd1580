import dataclasses

import numpy as np
import pytest

from btray.core.answers import Engine, Outputs, answer_row, predictions
from btray.core.calibration import Calibration, calibrated, energy
from btray.core.images import ImageError, encode_png
from btray.core.labels import CLASS_NAMES
from btray.core.strange import fit_detector

CALIBRATION = Calibration(
    temperature=2, coverage=0.9, set_threshold=0.3, ood_threshold=-1, rows=9, abstain_threshold=0.6
)


class Fake(Engine):
    """Its logits are the brightness of four corners, its features eight noisy pixels."""

    def __init__(self, card, detector=None):
        self.card, self.detector, self.uri = card, detector, "memory"
        self.runtime, self.best_batch = "fake", 1

    def compute(self, squares):
        corners = squares[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float32) / 20
        return corners, squares[:, 5, 5:13].astype(np.float32) / 255


@pytest.fixture
def card(tiny_bundle):
    return tiny_bundle.card.model_copy(update={"calibration": CALIBRATION})


def squares(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


def outputs(*logits):
    values = np.array(logits, dtype=np.float32)
    return Outputs(values, None, energy(values.astype(np.float64)))


def test_probabilities_are_the_calibrated_logits(card):
    said = outputs([1, 2, 3, 4], [9, 0, 0, 0])
    found = predictions(said, card, np.inf)
    expected = calibrated(said.logits, CALIBRATION)
    assert [list(answer.probabilities.values()) for answer in found] == expected.tolist()
    assert [answer.class_name for answer in found] == ["pituitary", "glioma"]
    assert [answer.ood_score for answer in found] == said.strangeness.tolist()


def test_an_answer_below_the_threshold_for_answers_abstains(card):
    unsure, sure = predictions(outputs([2.5, 0, 0, 0], [9, 0, 0, 0]), card, np.inf)
    assert (len(unsure.prediction_set), unsure.abstain) == (1, True)
    assert (sure.prediction_set, sure.abstain) == (("glioma",), False)


def test_a_score_above_the_bound_is_strange(card):
    said = outputs([9, 0, 0, 0])
    (strange,) = predictions(said, card, said.strangeness[0] - 1e-9)
    (known,) = predictions(said, card, said.strangeness[0])
    assert (strange.out_of_distribution, strange.abstain) == (True, True)
    assert (known.out_of_distribution, known.abstain) == (False, False)


def test_without_a_detector_the_energy_tells(card):
    engine = Fake(card)
    said = engine.outputs(squares(3))
    assert said.strangeness.tolist() == energy(said.logits.astype(np.float64)).tolist()
    assert (engine.strange_above, engine.deciles) == (-1, None)


def test_with_a_detector_the_features_tell(card):
    detector = fit_detector(Fake(card).compute(squares(80))[1])
    engine = Fake(card, detector)
    said = engine.outputs(squares(3, seed=1))
    assert said.strangeness.tolist() == detector.score(said.features).tolist()
    assert engine.strange_above == detector.threshold
    assert engine.deciles == tuple(detector.deciles)
    assert Fake(card, dataclasses.replace(detector, deciles=None)).deciles is None


def test_an_answer_that_is_no_number_is_a_fault(card):
    class Broken(Fake):
        def compute(self, squares):
            return np.full((len(squares), 4), np.nan, dtype=np.float32), None

    with pytest.raises(RuntimeError, match="memory: the network's answer is not a number"):
        Broken(card).answers(squares(1))


def test_unusable_images_keep_their_place(card):
    engine = Fake(card)
    first, second = squares(2)
    answers = engine.predict([encode_png(first), b"", encode_png(second)])
    assert isinstance(answers[1], ImageError)
    assert [answers[0], answers[2]] == engine.answers(np.stack([first, second]))
    assert engine.predict([]) == []


def test_the_row_names_the_model(card):
    (answer,) = Fake(card).answers(squares(1))
    row = answer_row(answer, "name", "abc")
    assert row["model"] == {"name": "name", "version": "abc"}
    assert tuple(row["probabilities"]) == CLASS_NAMES
    error = answer_row(ImageError("empty", "the file is empty"), "name", "abc")
    assert error == {"error": {"code": "empty", "message": "the file is empty"}}
