import json
import pickle
import subprocess
import sys
from random import Random

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from btray.config import Config, parse_yaml, resolve_config
from btray.errors import UserError
from btray.tune.dimension import Dimension
from btray.tune.space import GRID_LIMIT, Space, merged

BASE = Config()
FULL = """
train.focal_gamma: {space: uniform(0.5, 3), when: {train.loss: focal}}
train.learning_rate: loguniform(1e-4, 1e-2)
model.name: choice([btray_cnn, resnet18])
model.dropout: quniform(0, 0.5, 0.1)
data.batch_size: randint(16, 64, 16)
train.epochs: lograndint(4, 64)
train.loss: choice([cross_entropy, focal])
image.clip_percentiles: choice([[0, 100], [1, 99]])
model.pretrained:
  space: choice([null, hub])
  when: {model.name: [resnet18], train.loss: [focal, cross_entropy]}
train.class_weights: choice([true, false])
"""
FINITE = """
model.dropout: quniform(0, 0.2, 0.1)
train.loss: choice([cross_entropy, focal])
train.focal_gamma: {space: "choice([1, 2])", when: {train.loss: focal}}
train.patience: {space: "randint(4, 8, 4)", when: {train.focal_gamma: 2}}
"""


def space_of(text, base=BASE):
    return Space.parse(parse_yaml(text, "test"), base)


def dimension_of(expression, path="train.learning_rate"):
    return Space.parse({path: expression}, BASE).dimensions[0]


def mistake(text, base=BASE):
    with pytest.raises(UserError) as caught:
        space_of(text, base)
    message = str(caught.value)
    assert message.startswith("tune.space: ")
    assert "\n" not in message
    return message.removeprefix("tune.space: ")


def point_mistake(space, point):
    with pytest.raises(UserError) as caught:
        space.check_point(point)
    message = str(caught.value)
    assert "\n" not in message
    return message


def study(sampler=None):
    return optuna.create_study(sampler=sampler or optuna.samplers.RandomSampler(seed=0))


def value_of(config, path):
    for key in path.split("."):
        config = getattr(config, key)
    return config


# What is written


@pytest.mark.parametrize(
    ("path", "expression", "expected"),
    [
        ("train.learning_rate", "loguniform(1e-4, 1e-2)", ("loguniform", 1e-4, 1e-2, None)),
        ("train.learning_rate", " loguniform ( 1E-4 , +.5 ) ", ("loguniform", 1e-4, 0.5, None)),
        ("model.dropout", "uniform(0, 0.5)", ("uniform", 0.0, 0.5, None)),
        ("model.dropout", "quniform(0, 0.5, 1e-1)", ("quniform", 0.0, 0.5, 0.1)),
        ("data.batch_size", "randint(16, 64, 16)", ("randint", 16, 64, 16)),
        ("data.batch_size", "randint(1e1, 64)", ("randint", 10, 64, 1)),
        ("train.epochs", "lograndint(4, 64)", ("lograndint", 4, 64, None)),
        ("train.warmup_epochs", "randint(0, 3)", ("randint", 0, 3, 1)),
        ("model.views", "randint(1, 2)", ("randint", 1, 2, 1)),
        ("seed", "randint(0, 9)", ("randint", 0, 9, 1)),
    ],
)
def test_a_range_is_read(path, expression, expected):
    dimension = dimension_of(expression, path)
    found = (dimension.kind, dimension.low, dimension.high, dimension.step)
    assert found == expected
    assert [type(part) for part in found] == [type(part) for part in expected]
    assert (dimension.path, dimension.choices, dimension.when) == (path, (), {})


@pytest.mark.parametrize(
    ("path", "expression", "choices"),
    [
        ("model.name", "choice([btray_cnn, resnet18])", ("btray_cnn", "resnet18")),
        ("model.dropout", "choice([0, 0.3])", (0.0, 0.3)),
        ("train.learning_rate", "choice([1e-4, 1e-3])", (1e-4, 1e-3)),
        ("train.epochs", "choice([1e1, 20])", (10, 20)),
        ("train.class_weights", "choice([true, false])", (True, False)),
        ("model.pretrained", "choice([null, hub])", (None, "hub")),
        ("model.pretrained", "choice([null, package:NAME])", (None, "package:NAME")),
        ("image.size", "choice([96, 128])", (96, 128)),
        ("image.crop", "choice([none, head])", ("none", "head")),
        ("image.clip_percentiles", "choice([[0, 100], [1, 99]])", ((0.0, 100.0), (1.0, 99.0))),
        ("image.clip_percentiles", "choice([[0, 1e2], [1, 99]])", ((0.0, 100.0), (1.0, 99.0))),
    ],
)
def test_choices_are_what_the_field_holds(path, expression, choices):
    dimension = dimension_of(expression, path)
    assert dimension.choices == choices
    assert [type(choice) for choice in dimension.choices] == [type(choice) for choice in choices]
    assert (dimension.low, dimension.high, dimension.step) == (None, None, None)


@pytest.mark.parametrize(
    "entry",
    [
        "{space: randint(2, 8, 2), when: {train.loss: focal}}",
        "{space: randint(2, 8, 2),when: {train.loss: focal}}",
        "{when: {train.loss: focal}, space: 'randint(2, 8, 2)'}",
        "{when: {train.loss: focal}, space: randint(2, 8, 2)}",
        "\n  space: randint(2, 8, 2)\n  when: {train.loss: [focal]}",
    ],
)
def test_a_condition_is_read_in_braces_and_in_lines(entry):
    space = space_of(f"train.patience: {entry}\ntrain.loss: choice([cross_entropy, focal])")
    loss, patience = space.dimensions
    assert patience == Dimension(
        "train.patience", "randint", 2, 8, 2, when={"train.loss": ("focal",)}
    )
    assert loss.when == {}


def test_numbers_in_braces_are_read_as_outside():
    space = space_of("train.learning_rate: {space: loguniform(1e-4, 1.0e-2)}")
    assert str(space.dimensions[0]) == "loguniform(0.0001, 0.01)"


def test_a_mapping_without_when_always_counts():
    assert space_of("train.epochs: {space: 'randint(1, 3)', when: {}}").dimensions[0].when == {}


def test_when_takes_a_list_field_s_value_or_a_list_of_them():
    text = "image.clip_percentiles: choice([[0, 100], [1, 99], [2, 98]])\n"
    for written, values in [
        ("[1, 99]", ((1.0, 99.0),)),
        ("[[1, 99], [0, 100], [1, 99]]", ((1.0, 99.0), (0.0, 100.0))),
    ]:
        entry = f"{{space: randint(1, 3), when: {{image.clip_percentiles: {written}}}}}"
        dimension = space_of(f"{text}train.epochs: {entry}").dimensions[1]
        assert dimension.when == {"image.clip_percentiles": values}


@pytest.mark.parametrize(
    ("parent", "written", "value"),
    [
        ("train.epochs: randint(2, 8, 2)", "train.epochs: 4", 4),
        ("train.epochs: lograndint(2, 8)", "train.epochs: 3", 3),
        ("train.ema: quniform(0, 0.3, 0.1)", "train.ema: 3e-1", 0.3),
        ("train.learning_rate: choice([1e-4, 1e-3])", "train.learning_rate: 1e-4", 1e-4),
        ("train.compile: choice([true, false])", "train.compile: false", False),
        ("model.pretrained: choice([null, hub])", "model.pretrained: null", None),
    ],
)
def test_when_takes_values_of_every_countable_kind(parent, written, value):
    entry = f"model.dropout: {{space: uniform(0, 0.5), when: {{{written}}}}}"
    dropout = space_of(f"{entry}\n{parent}").dimensions[1]
    assert list(dropout.when.values()) == [(value,)]


def test_dimensions_keep_their_order_but_for_conditions():
    paths = [dimension.path for dimension in space_of(FULL).dimensions]
    assert paths == [
        "train.learning_rate",
        "model.name",
        "model.dropout",
        "data.batch_size",
        "train.epochs",
        "train.loss",
        "train.focal_gamma",
        "image.clip_percentiles",
        "model.pretrained",
        "train.class_weights",
    ]


def test_a_dimension_is_written_as_it_was_read():
    written = [
        "loguniform(0.0001, 0.01)",
        "choice([btray_cnn, resnet18])",
        "quniform(0, 0.5, 0.1)",
        "randint(16, 64, 16)",
        "lograndint(4, 64)",
        "choice([cross_entropy, focal])",
        "uniform(0.5, 3)",
        "choice([[0, 100], [1, 99]])",
        "choice([null, hub])",
        "choice([true, false])",
    ]
    assert [str(dimension) for dimension in space_of(FULL).dimensions] == written


def test_a_space_travels_to_other_processes():
    space = space_of(FULL)
    assert pickle.loads(pickle.dumps(space)) == space


def test_reading_a_space_loads_no_torch_ray_or_optuna():
    script = (
        "import sys; from btray.tune.space import Space; from btray.config import Config; "
        "Space.parse({'train.epochs': 'randint(1, 3)'}, Config()); "
        "print({'torch', 'ray', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


# What is refused: fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.learning_rat: uniform(0, 1)",
            "unknown key train.learning_rat; did you mean train.learning_rate?",
        ),
        ("learning_rate: uniform(0, 1)", "unknown key learning_rate; did you mean train."),
        ("quux.zap: uniform(0, 1)", "unknown key quux.zap; `btray config show` lists the keys"),
        ("7: uniform(0, 1)", "unknown key 7; "),
        ("tune.trials: randint(1, 3)", "unknown key tune.trials"),
        (
            "train: uniform(0, 1)",
            "train: a section, not a field; name its fields, such as train.epochs",
        ),
    ],
)
def test_what_is_no_field(text, message):
    assert mistake(text).startswith(message)


@pytest.mark.parametrize(
    "path",
    [
        "run.storage",
        "run.name",
        "tracking.enabled",
        "tracking.uri",
        "data.dataset",
        "data.fold",
        "data.cache_dir",
        "data.cache_limit",
        "data.node_labels",
        "train.teacher",
        "train.workers",
        "train.cpus_per_worker",
        "train.metric",
        "train.max_failures",
        "train.keep_checkpoints",
        "train.checkpoint_every",
    ],
)
def test_fields_that_are_no_part_of_a_search(path):
    assert mistake(f"{path}: choice([1, 2])") == (
        f"{path}: not searched: it says where or how a run is kept, or what its score means"
    )


def test_images_are_varied_by_choice_only():
    assert mistake("image.size: randint(64, 128, 32)") == (
        "image.size: randint: only choice([a, b]), since the set is decoded anew for every value"
    )


# What is refused: the function


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.epochs", "5", "5 is no function; write one such as uniform(0, 0.5)"),
        ("train.epochs", "null", "null is no function; write one such as uniform(0, 0.5)"),
        ("train.epochs", "[5, 8]", "[5, 8] is no function; write one such as choice([5, 8])"),
        ("train.epochs", "many", "many is no function such as uniform(0, 0.5)"),
        (
            "train.epochs",
            "randint(4",
            "randint(4 is no function such as uniform(0, 0.5); between braces, put it in quotes",
        ),
        ("train.epochs", "randint 4, 8", "randint 4, 8 is no function such as uniform(0, 0.5)"),
        (
            "model.name",
            "'choice([a, b)'",
            "choice([a, b): what is in the brackets cannot be read",
        ),
        ("model.dropout", "unifrom(0, 1)", "unknown function unifrom; did you mean uniform?"),
        ("model.dropout", "log_uniform(1, 2)", "unknown function log_uniform; did you mean log"),
        (
            "model.dropout",
            "normal(0, 1)",
            "unknown function normal; the functions are uniform, loguniform, quniform, randint, "
            "lograndint, choice",
        ),
        (
            "model.dropout",
            "uniform(0, 0.5, 0.1)",
            "uniform(0, 0.5, 0.1): wrong number of arguments; write uniform(",
        ),
        (
            "model.dropout",
            "uniform()",
            "uniform(): wrong number of arguments; write uniform(",
        ),
        (
            "model.dropout",
            "quniform(0, 0.5)",
            "quniform(0, 0.5): wrong number of arguments; write quniform(low, high, step)",
        ),
        (
            "train.epochs",
            "randint(1)",
            "randint(1): wrong number of arguments; write randint(low, high) or randint(",
        ),
        (
            "model.name",
            "choice(a, b)",
            "choice(a, b): wrong number of arguments; write choice([",
        ),
        (
            "model.name",
            "choice(a)",
            "choice(a): write its values as a list, choice([a, b])",
        ),
        (
            "train.learning_rate",
            "qloguniform(1e-4, 1e-2, 1e-4)",
            "qloguniform(1e-4, 1e-2, 1e-4): a logarithmic scale has no step; write "
            "loguniform(low, high) or choice([a, b])",
        ),
        (
            "train.learning_rate",
            "loguniform(1e-4, 1e-2, 1e-4)",
            "loguniform(1e-4, 1e-2, 1e-4): a logarithmic scale has no step; write "
            "loguniform(low, high) or choice([a, b])",
        ),
        (
            "train.epochs",
            "lograndint(4, 64, 4)",
            "lograndint(4, 64, 4): a logarithmic scale has no step; write "
            "lograndint(low, high) or choice([a, b])",
        ),
    ],
)
def test_what_is_no_function(path, value, message):
    assert mistake(f"{path}: {value}").startswith(f"{path}: {message}")


def test_braces_around_the_whole_space_ask_for_quotes():
    assert mistake("{train.epochs: randint(4, 8)}").endswith("between braces, put it in quotes")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.epochs", "uniform(1, 3)", "uniform: the field takes whole numbers; use randint"),
        ("train.epochs", "quniform(1, 3, 1)", "quniform: the field takes whole numbers; use randi"),
        ("train.epochs", "loguniform(1, 3)", "loguniform: the field takes whole numbers; use logr"),
        ("model.views", "uniform(1, 2)", "uniform: the field takes whole numbers; use randint"),
        ("model.name", "uniform(1, 2)", "uniform: the field takes no range of numbers; use cho"),
        ("train.loss", "randint(1, 2)", "randint: the field takes no range of numbers; use cho"),
        ("train.compile", "randint(0, 1)", "randint: the field takes no range of numbers; use cho"),
        ("model.dropout", "uniform(0.5, 0.5)", "uniform: low 0.5 is not below high 0.5"),
        ("train.epochs", "randint(5, 3)", "randint: low 5 is not below high 3"),
        ("train.ema", "loguniform(0, 0.5)", "loguniform: low 0: a logarithmic scale begins above"),
        ("train.patience", "lograndint(0, 5)", "lograndint: low 0: a logarithmic scale begins abo"),
        ("model.dropout", "quniform(0, 0.5, 0)", "quniform: step 0: must be above 0"),
        ("train.epochs", "randint(1, 3, -1)", "randint: step -1: must be above 0"),
        (
            "model.dropout",
            "quniform(0, 0.5, 0.3)",
            "quniform: step 0.3 does not lead from 0 to 0.5; end at 0.3 or 0.6",
        ),
        (
            "data.batch_size",
            "randint(16, 60, 16)",
            "randint: step 16 does not lead from 16 to 60; end at 48 or 64",
        ),
        (
            "data.batch_size",
            "randint(16, 20, 16)",
            "randint: step 16 does not lead from 16 to 20; end at 32",
        ),
        ("model.dropout", "quniform(0, 0.5, 1e-300)", "quniform: step 1e-300: too fine; write uni"),
        ("train.epochs", "randint(1.5, 3)", "randint: 1.5 is not a whole number"),
        ("train.epochs", "lograndint(1, 3.5)", "lograndint: 3.5 is not a whole number"),
        ("train.epochs", "randint(1, 9, 0.5)", "randint: 0.5 is not a whole number"),
        ("model.dropout", "uniform(0, half)", "uniform: half is not a number"),
        ("model.dropout", "uniform(false, 0.5)", "uniform: false is not a number"),
        ("model.dropout", "uniform(0, [1])", "uniform: [1] is not a number"),
        ("train.weight_decay", "uniform(0, .inf)", "uniform: inf is too large or no number"),
        ("train.weight_decay", "uniform(.nan, 1)", "uniform: nan is too large or no number"),
        ("seed", "randint(0, 1e400)", "randint: 1e400 is too large or no number"),
        ("seed", f"randint(0, {2**53})", f"randint: {2**53} is too large or no number"),
        ("model.name", "choice([])", "choice([]) has no values; name some"),
        ("model.name", "choice([a, b, a])", "choice: a is given twice"),
        ("model.dropout", "choice([0.1, 1e-1])", "choice: 1e-1 is given twice"),
        ("train.epochs", "choice([1, 1.0])", "choice: 1 is given twice"),
        ("image.clip_percentiles", "choice([[1, 99], [1.0, 99]])", "choice: [1, 99] is given twi"),
    ],
)  # fmt: skip
def test_what_is_no_range_or_choice(path, value, message):
    assert mistake(f"{path}: {value}").startswith(f"{path}: {message}")


# What is refused: values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dropout: uniform(0, 1.2)", "model.dropout: 1.2: input should be less than 1"),
        ("model.dropout: uniform(-0.1, 0.5)", "model.dropout: -0.1: input should be greater than"),
        ("model.dropout: quniform(0, 1, 0.5)", "model.dropout: 1: input should be less than 1"),
        ("train.epochs: randint(0, 3)", "train.epochs: 0: input should be greater than or equal"),
        ("model.views: randint(1, 3)", "model.views: 3: input should be 1 or 2"),
        ("image.size: choice([64, 16])", "image.size: 16: input should be greater than or equal"),
        ("image.size: choice([64, 6e4])", "image.size: 6e4: input should be less than or equal"),
        ("train.loss: choice([focal, hinge])", "train.loss: hinge: input should be 'cross_entropy"),
        ("model.dropout: choice([0.1, null])", "model.dropout: null: input should be a valid num"),
        ("model.name: choice([a, [b]])", "model.name: [b]: input should be a valid string"),
        ("model.name: choice([a, no])", "model.name: false: input should be a valid string"),
        (
            "image.clip_percentiles: choice([[0, 100], [99, 1]])",
            "image.clip_percentiles: [99, 1]: clip_percentiles 99, 1: need 0 <= low < high <= 100",
        ),
        (
            "image.clip_percentiles: choice([[0, 100], [1]])",
            "image.clip_percentiles: [1]: field required",
        ),
    ],
)
def test_values_that_the_field_refuses(text, message):
    assert mistake(text).startswith(message)


def test_values_that_only_another_dimension_makes_possible():
    base = resolve_config({"train": {"epochs": 2, "warmup_epochs": 1}})
    text = "train.warmup_epochs: uniform(0, 5)\ntrain.epochs: randint(6, 9)"
    assert space_of(text, base).size() is None


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "train.epochs: randint(1, 64)",
            ["train.warmup_epochs=1"],
            "the point train.epochs=1 is refused: train.warmup_epochs=1 leaves nothing of "
            "train.epochs=1; make it smaller",
        ),
        (
            "data.batch_size: randint(16, 6000)",
            ["train.workers=2"],
            "does not divide evenly over train.workers=2; make it a multiple",
        ),
        (
            "train.epochs: lograndint(5, 1000)\ntrain.warmup_epochs: uniform(0, 5)",
            [],
            "train.warmup_epochs=5 is refused: train.warmup_epochs=5 leaves nothing of",
        ),
        (
            "train.loss: choice([cross_entropy, focal])\n"
            "train.epochs: {space: 'choice([1, 8])', when: {train.loss: focal}}",
            ["train.warmup_epochs=2"],
            "the point train.loss=focal, train.epochs=1 is refused: train.warmup_epochs=2",
        ),
    ],
)
def test_points_that_the_tree_refuses(text, overrides, message):
    assert message in mistake(text, resolve_config({}, overrides))


@pytest.mark.parametrize("tree", [{}, None, [], "uniform(0, 1)"])
def test_an_empty_space(tree):
    with pytest.raises(UserError, match=r"tune\.space: nothing to search; write a mapping"):
        Space.parse(tree, BASE)


@pytest.mark.parametrize(
    "text",
    [
        "train.epochs: choice([3])",
        "train.epochs: choice([3])\ntrain.ema: {space: 'choice([0])', when: {train.epochs: 3}}",
    ],
)
def test_a_space_of_one_point(text):
    assert mistake(text) == "every dimension has one value; nothing to search"


def test_one_value_beside_others_is_no_mistake():
    assert space_of("train.epochs: choice([3])\nmodel.views: choice([1, 2])").size() == 2


# What is refused: conditions


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{space: 'uniform(0, 3)', when: focal}", "when: focal is no mapping such as {train.loss:"),
        ("{space: 'uniform(0, 3)', when: null}", "when: null is no mapping such as {train.loss: f"),
        ("{space: 'uniform(0, 3)', whem: {}}", "unknown key whem; did you mean when?"),
        ("{space: 'uniform(0, 3)', x: {}}", "unknown key x; the keys are space and when"),
        ("{when: {train.loss: focal}}", "space is missing; write {space: 'uniform(0, 1)', when: "),
        ("{space: 3}", "3 is no function; write one such as uniform(0, 0.5)"),
        (
            "{space: 'uniform(0, 3)', when: {train.los: focal}}",
            "when: train.los is not searched; did you mean train.loss?",
        ),
        (
            "{space: 'uniform(0, 3)', when: {model.name: resnet18}}",
            "when: model.name is not searched; a condition names another key of tune.space",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.loss: hinge}}",
            "when: train.loss: hinge is not in choice([cross_entropy, focal])",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.loss: [focal, hinge]}}",
            "when: train.loss: hinge is not in choice([cross_entropy, focal])",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.loss: []}}",
            "when: train.loss: an empty list; name a value",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.epochs: 5}}",
            "when: train.epochs: 5 is not in randint(2, 8, 2)",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.epochs: true}}",
            "when: train.epochs: true is not in randint(2, 8, 2)",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.ema: 0.1}}",
            "when: train.ema is continuous; a condition needs a choice or whole numbers",
        ),
        (
            "{space: 'uniform(0, 3)', when: {train.compile: 1}}",
            "when: train.compile: 1 is not in choice([true, false])",
        ),
    ],
)
def test_what_is_no_condition(entry, message):
    others = (
        "train.loss: choice([cross_entropy, focal])\ntrain.epochs: randint(2, 8, 2)\n"
        "train.ema: uniform(0, 0.5)\ntrain.compile: choice([true, false])"
    )
    text = f"train.focal_gamma: {entry}\n{others}"
    assert mistake(text).startswith(f"train.focal_gamma: {message}")


def test_conditions_in_a_circle():
    text = """
    train.mixup: {space: "choice([0, 1])", when: {train.epochs: 1}}
    train.epochs: {space: "choice([1, 2])", when: {train.patience: 1}}
    train.patience: {space: "choice([1, 2])", when: {train.epochs: 2}}
    """
    assert mistake(text) == (
        "when goes in a circle: train.epochs -> train.patience -> train.epochs; leave one out"
    )


def test_a_condition_on_itself():
    text = 'train.epochs: {space: "choice([1, 2])", when: {train.epochs: 1}}'
    assert mistake(text).startswith("when goes in a circle: train.epochs -> train.epochs;")


# Values, sizes, grids


@pytest.mark.parametrize(
    ("path", "expression", "values"),
    [
        ("model.dropout", "quniform(0, 0.5, 0.1)", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        ("data.batch_size", "randint(16, 64, 16)", (16, 32, 48, 64)),
        ("train.epochs", "randint(2, 4)", (2, 3, 4)),
        ("train.loss", "choice([focal, cross_entropy])", ("focal", "cross_entropy")),
        ("model.dropout", "uniform(0, 0.5)", None),
        ("train.learning_rate", "loguniform(1e-4, 1e-2)", None),
        ("train.epochs", "lograndint(4, 64)", None),
    ],
)
def test_all_values_of_a_dimension(path, expression, values):
    dimension = dimension_of(expression, path)
    assert dimension.values() == values
    assert dimension.count() == (None if values is None else len(values))


def test_a_grid_holds_every_point_once():
    grid = space_of(FINITE).grid()
    losses = [
        {"train.loss": "cross_entropy"},
        {"train.loss": "focal", "train.focal_gamma": 1.0},
        {"train.loss": "focal", "train.focal_gamma": 2.0, "train.patience": 4},
        {"train.loss": "focal", "train.focal_gamma": 2.0, "train.patience": 8},
    ]
    assert grid == [{"model.dropout": d, **rest} for d in (0.0, 0.1, 0.2) for rest in losses]
    assert space_of(FINITE).size() == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dropout: uniform(0, 0.5)", "uniform(0, 0.5) has no grid; write choice([a, b]) or "
         "quniform(low, high, step)"),
        ("train.epochs: lograndint(4, 64)", "lograndint(4, 64) has no grid; write choice([a, b]) "
         "or randint(low, high, step)"),
    ],
)  # fmt: skip
def test_a_range_without_steps_has_no_grid(text, message):
    space = space_of(f"model.views: choice([1, 2])\n{text}")
    assert space.size() is None
    with pytest.raises(UserError) as caught:
        space.grid()
    assert str(caught.value) == f"tune.space: {text.split(':')[0]}: {message}"


def test_a_grid_that_is_too_large_is_counted_but_not_made():
    space = space_of("seed: randint(0, 9007199254740990)\nmodel.views: choice([1, 2])")
    assert space.size() == 2 * 9007199254740991
    with pytest.raises(UserError, match=r"a grid of 18,014,398,509,481,982 points, more than 100,"):
        space.grid()
    assert space.size() > GRID_LIMIT


# Points


@pytest.fixture(scope="module")
def full():
    return space_of(FULL)


POINT = {
    "train.learning_rate": 0.001,
    "model.name": "btray_cnn",
    "model.dropout": 0.3,
    "data.batch_size": 32,
    "train.epochs": 20,
    "train.loss": "focal",
    "train.focal_gamma": 2.0,
    "image.clip_percentiles": (1.0, 99.0),
    "train.class_weights": True,
}


def test_a_known_point_is_taken_as_people_write_it(full):
    text = """
    train.class_weights: true
    train.learning_rate: 1e-3
    model.name: btray_cnn
    model.dropout: 3e-1
    data.batch_size: 32.0
    train.epochs: 2e1
    train.loss: focal
    train.focal_gamma: 2
    image.clip_percentiles: [1, 99]
    """
    point = full.check_point(yaml.safe_load(text))
    assert point == POINT
    assert list(point) == list(POINT)
    assert [type(value) for value in point.values()] == [type(value) for value in POINT.values()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epoch": 3}, "train.epoch is not searched; did you mean train.epochs?"),
        ({"quux": 3}, "quux is not searched; tune.space has train.learning_rate, model.name, "),
        ({"train.learning_rate": 0.1}, "train.learning_rate: 0.1 is not in loguniform(0.0001, 0.0"),
        ({"train.learning_rate": True}, "train.learning_rate: true is not in loguniform(0.0001, "),
        ({"train.learning_rate": float("nan")}, "train.learning_rate: nan is not in loguniform("),
        ({"train.learning_rate": "fast"}, "train.learning_rate: fast is not in loguniform("),
        ({"model.dropout": 0.25}, "model.dropout: 0.25 is not in quniform(0, 0.5, 0.1)"),
        ({"data.batch_size": 33}, "data.batch_size: 33 is not in randint(16, 64, 16)"),
        ({"data.batch_size": 80}, "data.batch_size: 80 is not in randint(16, 64, 16)"),
        ({"train.epochs": 20.5}, "train.epochs: 20.5 is not in lograndint(4, 64)"),
        ({"model.name": "vgg"}, "model.name: vgg is not in choice([btray_cnn, resnet18])"),
        ({"train.class_weights": 1}, "train.class_weights: 1 is not in choice([true, false])"),
        ({"image.clip_percentiles": [1, 98]}, "image.clip_percentiles: [1, 98] is not in choice("),
        ({"train.epochs": None}, "train.epochs: null is not in lograndint(4, 64)"),
        (
            {"train.loss": "cross_entropy"},
            "train.focal_gamma counts only when train.loss is focal; leave it out",
        ),
        (
            {"model.pretrained": "hub"},
            "model.pretrained counts only when model.name is resnet18 and train.loss is focal or "
            "cross_entropy; leave it out",
        ),
        (
            {"model.name": "resnet18"},
            "model.pretrained is missing; add a value of choice([null, hub])",
        ),
    ],
)
def test_a_point_outside_the_space(full, changes, message):
    assert point_mistake(full, POINT | changes).startswith(f"tune.points: {message}")


def test_a_point_that_misses_a_value(full):
    point = {path: value for path, value in POINT.items() if path != "train.epochs"}
    assert point_mistake(full, point) == (
        "tune.points: train.epochs is missing; add a value of lograndint(4, 64)"
    )


def test_a_point_that_is_no_mapping(full):
    assert point_mistake(full, [0.1]) == (
        "tune.points: a point is a mapping such as {train.epochs: 20}"
    )


def test_a_point_laid_over_a_configuration(full):
    base = resolve_config({"seed": 7, "train": {"epochs": 9}})
    config = full.apply(base, POINT)
    assert config.seed == 7
    assert config.train.optimizer == base.train.optimizer
    assert {path: value_of(config, path) for path in POINT} == POINT
    assert base.train.epochs == 9
    assert merged(base, {"seed": 3}) == base.model_copy(update={"seed": 3})


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"train.epochs": 0}, "configuration: train.epochs: input should be greater than or equal"),
        ({"train.epochs": 1, "train.warmup_epochs": 3}, "configuration: train.warmup_epochs=3 lea"),
        ({"train.epoch": 3}, "point: unknown key train.epoch; did you mean train.epochs?"),
        ({"train.epochs.x": 3}, "point: unknown key train.epochs.x; did you mean train.epochs?"),
    ],
)
def test_values_that_a_configuration_refuses(full, point, message):
    with pytest.raises(UserError) as caught:
        full.apply(BASE, point)
    assert str(caught.value).startswith(message)


# Optuna


def test_distributions_by_path(full):
    d = optuna.distributions
    assert full.distributions() == {
        "train.learning_rate": d.FloatDistribution(1e-4, 1e-2, log=True),
        "model.name": d.CategoricalDistribution(["btray_cnn", "resnet18"]),
        "model.dropout": d.FloatDistribution(0, 0.5, step=0.1),
        "data.batch_size": d.IntDistribution(16, 64, step=16),
        "train.epochs": d.IntDistribution(4, 64, log=True),
        "train.loss": d.CategoricalDistribution(["cross_entropy", "focal"]),
        "train.focal_gamma": d.FloatDistribution(0.5, 3),
        "image.clip_percentiles": d.CategoricalDistribution(["[0.0, 100.0]", "[1.0, 99.0]"]),
        "model.pretrained": d.CategoricalDistribution([None, "hub"]),
        "train.class_weights": d.CategoricalDistribution([True, False]),
    }


def test_a_trial_has_the_distributions_that_are_foretold(full):
    trials = study()
    for _ in range(30):
        trial = trials.ask()
        point = full.suggest(trial)
        told = full.distributions()
        assert trial.distributions == {path: told[path] for path in point}
        assert full.decode(trial.params) == point
        assert full.encode(point) == pytest.approx(trial.params)


def test_a_known_point_is_what_the_next_trial_gets(full):
    trials = study()
    trials.enqueue_trial(full.encode(POINT))
    assert full.suggest(trials.ask()) == POINT


def test_a_point_survives_json(full):
    assert full.encode(json.loads(json.dumps(POINT))) == full.encode(POINT)


def test_a_study_is_rebuilt_from_points(full):
    trials = study(optuna.samplers.TPESampler(seed=0, n_startup_trials=2))
    told = full.distributions()
    random = Random(0)
    for number in range(8):
        point = {}
        for dimension in full.dimensions:
            if dimension.counts(point):
                point[dimension.path] = dimension.draw(random)
        params = full.encode(point)
        trials.add_trial(
            optuna.trial.create_trial(
                params=params, distributions={path: told[path] for path in params}, value=number
            )
        )
    point = full.suggest(trials.ask())
    assert full.check_point(point) == point


def test_every_point_of_a_grid_is_a_point_of_optuna_s():
    space = space_of(FINITE)
    grid = space.grid()
    assert [space.decode(space.encode(point)) for point in grid] == grid
    assert [space.suggest(optuna.trial.FixedTrial(space.encode(point))) for point in grid] == grid


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"train.epoch": 3}, "study: train.epoch is not searched; did you mean train.epochs?"),
        ({"train.epochs": 3}, "study: train.epochs: 3 is not in lograndint(4, 64)"),
        ({"image.clip_percentiles": "[0"}, "study: image.clip_percentiles: [0 is not in choice("),
        ({"image.clip_percentiles": 3}, "study: image.clip_percentiles: 3 is not in choice("),
    ],
)
def test_parameters_of_another_study(full, params, message):
    with pytest.raises(UserError) as caught:
        full.decode(params)
    assert str(caught.value).startswith(message)


def test_a_value_outside_the_space_is_no_parameter(full):
    with pytest.raises(UserError, match=r"point: train\.epochs: 3 is not in lograndint"):
        full.encode({"train.epochs": 3})


# Properties


def decimals(low, high):
    return st.integers(low, high).map(lambda n: n / 1000)


@st.composite
def spaces(draw):
    """A space of every kind of dimension with random ends; some count only with others."""
    low, wide = draw(decimals(1, 400)), draw(decimals(1, 500))
    steps, step = draw(st.integers(1, 40)), draw(st.integers(1, 12)) / 1000
    start, count, stride = draw(st.tuples(*[st.integers(1, 30)] * 3))
    choices = draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=2, unique=True))
    named = draw(st.lists(st.sampled_from(choices), min_size=1, unique=True))
    tree = {
        "train.focal_gamma": {
            "space": f"uniform({low}, {round(low + wide, 3)})",
            "when": {"model.name": named, "train.patience": start},
        },
        "train.learning_rate": f"loguniform({low / 1000:g}, {(low + wide) / 1000:g})",
        "model.dropout": f"quniform(0.1, {round(0.1 + steps * step, 3)}, {step})",
        "train.epochs": f"lograndint({start}, {start + count})",
        "train.patience": {
            "space": f"randint({start}, {start + stride * count}, {stride})",
            "when": {"model.name": named[0]},
        },
        "model.name": f"choice([{', '.join(choices)}])",
        "image.clip_percentiles": "choice([[0, 100], [0.5, 99.5]])",
    }
    kept = [path for path in tree if draw(st.booleans()) or path == "model.name"]
    if "train.patience" not in kept:
        del tree["train.focal_gamma"]["when"]["train.patience"]
    return {path: tree[path] for path in kept}


@settings(max_examples=50)
@given(spaces(), st.integers(0, 2**31))
def test_what_is_suggested_is_in_the_space_and_in_the_configuration(tree, seed):
    base = resolve_config({"train": {"warmup_epochs": 0}})
    space = Space.parse(tree, base)
    trial = study(optuna.samplers.RandomSampler(seed)).ask()
    point = space.suggest(trial)

    for dimension in space.dimensions:
        assert (dimension.path in point) == dimension.counts(point)
        if dimension.counts(point):
            value, values = point[dimension.path], dimension.values()
            assert (value in values) if values else (dimension.low <= value <= dimension.high)
    assert space.check_point(point) == point
    assert space.decode(space.encode(point)) == point
    assert space.decode(json.loads(json.dumps(trial.params))) == point
    config = space.apply(base, point)
    assert {path: value_of(config, path) for path in point} == point
    assert space.apply(config, {}) == config


@settings(max_examples=30)
@given(spaces())
def test_a_finite_space_has_as_many_points_as_its_grid(tree):
    tree = {path: text for path, text in tree.items() if "log" not in str(text)}
    tree.pop("train.focal_gamma", None)
    space = Space.parse(tree, BASE)
    grid = space.grid()
    assert space.size() == len(grid)
    assert len({json.dumps(point) for point in grid}) == len(grid)
    assert all(space.check_point(point) == point for point in grid)
