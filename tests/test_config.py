import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from btray.config import (
    Config,
    ImageConfig,
    Section,
    dump_config,
    field_paths,
    load_config,
    parse_yaml,
    resolve_config,
)
from btray.errors import UserError


def mistake(*overrides, tree=None):
    with pytest.raises(UserError) as caught:
        resolve_config(tree or {}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def sections(model=Config):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


# The tree


def test_the_defaults_are_a_valid_tree():
    assert load_config() == Config()


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_field_has_a_description(section):
    without = [name for name, field in section.model_fields.items() if not field.description]
    assert without == []


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_no_section_can_be_changed(section):
    name = next(iter(section.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(section(), name, None)


def test_field_paths_are_dotted_and_hold_sections_and_leaves():
    paths = field_paths()
    assert {"seed", "train", "train.learning_rate", "augment.flip"} <= set(paths)
    assert len(paths) == len(set(paths))


def test_the_json_schema_describes_and_closes_every_section():
    schema = Config.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert len(objects) == len(list(sections()))
    assert all(part["additionalProperties"] is False for part in objects)
    assert all("description" in p for part in objects for p in part["properties"].values())


# Files


def test_a_file_is_read_and_the_rest_is_default(write):
    config = load_config(write("seed: 7\nimage:\n  size: 64\n"))
    assert config == Config(seed=7, image=ImageConfig(size=64))


def test_an_empty_file_gives_the_defaults(write):
    assert load_config(write("# nothing yet\n")) == Config()


def test_overrides_win_over_the_file(write):
    config = load_config(write("image: {size: 64, fit: stretch}"), ["image.size=96"])
    assert (config.image.size, config.image.fit) == (96, "stretch")


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read .*No such file"):
        load_config(path)


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_not_utf8(write):
    with pytest.raises(UserError, match=r"run\.yaml: not a text file in UTF-8"):
        load_config(write(b"seed: \xff\xfe1"))


def test_a_file_that_is_not_yaml_is_named_with_the_line(write):
    with pytest.raises(UserError, match=r"run\.yaml: not valid YAML: .*line 3") as caught:
        load_config(write("seed: 1\nimage: [\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("- 1\n- 2", "a list"), ("only words", "a text"), ("3", "a int")]
)
def test_a_file_that_holds_no_mapping(write, text, kind):
    with pytest.raises(UserError, match=f"mapping of sections, not {kind}"):
        load_config(write(text))


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1\nseed: 2\n",
        "train: {epochs: 1}\ntrain: {workers: 2}",
        "image: {size: 64, size: 32}",
    ],
)
def test_a_key_given_twice_is_refused(write, text):
    with pytest.raises(UserError, match="is given twice"):
        load_config(write(text))


def test_yaml_cannot_make_python_objects(write):
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(write("seed: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("text", ["seed: !!int many", "seed: !!bool many", "[" * 1200])
def test_values_yaml_itself_stumbles_over_are_the_users_mistake(write, text):
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(write(text))


@given(st.text())
def test_any_text_is_a_mapping_or_the_users_mistake(text):
    try:
        outcome = parse_yaml(text, "text")
    except UserError as error:
        outcome = error
    assert isinstance(outcome, dict) or str(outcome).startswith("text: ")


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("train.learning_rate=1e-3", "train", "learning_rate", 0.001),
        ("train.learning_rate=.5", "train", "learning_rate", 0.5),
        ("train.epochs=1e2", "train", "epochs", 100),
        ("train.cpus_per_worker=null", "train", "cpus_per_worker", None),
        ("train.cpus_per_worker=", "train", "cpus_per_worker", None),
        ("augment.enabled=false", "augment", "enabled", False),
        (" image.size = 64 ", "image", "size", 64),
        ("data.dataset=s3://bucket/path?a=b", "data", "dataset", "s3://bucket/path?a=b"),
        ("run.name='007'", "run", "name", "007"),
        ("run.name=2026-01-31", "run", "name", "2026-01-31"),
    ],
)
def test_an_override_sets_one_field(override, section, field, value):
    assert getattr(getattr(resolve_config({}, [override]), section), field) == value


def test_an_override_may_hold_a_whole_section():
    assert resolve_config({}, ["image={size: 64, fit: stretch}"]).image == ImageConfig(
        size=64, fit="stretch"
    )


def test_the_last_of_two_overrides_wins():
    assert resolve_config({}, ["seed=1", "seed=2"]).seed == 2


def test_overrides_leave_the_given_tree_alone():
    tree = {"image": {"size": 64}}
    resolve_config(tree, ["image.size=96", "seed=3"])
    assert tree == {"image": {"size": 64}}


@pytest.mark.parametrize("override", ["seed", "=1", "train.=1", ".seed=1", "train..epochs=1", ""])
def test_an_override_of_another_shape_is_refused(override):
    assert "write it as section.field=value" in mistake(override)


def test_an_override_below_a_value_is_refused():
    assert mistake("image.size.pixels=3", tree={"image": {"size": 64}}) == (
        "--set image.size.pixels=3: size is a value, not a section"
    )


@pytest.mark.parametrize("override", ["seed=[1", "seed={a: 1, a: 2}", "seed=!!int many"])
def test_an_override_that_is_not_yaml_is_refused(override):
    assert mistake(override) == f"--set {override}: the value is not valid YAML"


@given(st.sampled_from(field_paths()), st.text())
def test_any_override_is_a_configuration_or_the_users_mistake(path, value):
    try:
        outcome = resolve_config({}, [f"{path}={value}"])
    except UserError as error:
        outcome = error
    assert isinstance(outcome, Config) or path.split(".")[-1] in str(outcome)


# What a user gets wrong


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("train.learning_rat=1", "train.learning_rat", "train.learning_rate"),
        ("trian.epochs=1", "trian", "train"),
        ("learning_rate=1", "learning_rate", "train.learning_rate"),
        ("epoch=1", "epoch", "train.epochs"),
        ("model.image_size=1", "model.image_size", "image.size"),
        ("image.siz=64", "image.siz", "image.size"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(override, unknown, nearest):
    assert mistake(override) == (f"configuration: unknown key {unknown}; did you mean {nearest}?")


def test_an_unknown_key_like_nothing_points_to_the_list():
    assert mistake("zzz.qqq=1") == (
        "configuration: unknown key zzz; `btray config show` lists the keys"
    )


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("image.size=[64, 64]", "image.size"),
        ("image.size=16", "image.size"),
        ("image.std=0", "image.std"),
        ("image.fit=crop", "image.fit"),
        ("image=64", "image"),
        ("augment.enabled=perhaps", "augment.enabled"),
        ("augment.flip=1.5", "augment.flip"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.weight_decay=inf", "train.weight_decay"),
        ("run.name=../elsewhere", "run.name"),
        ("seed=-1", "seed"),
        ("seed=null", "seed"),
    ],
)
def test_a_wrong_value_is_named_by_the_path_of_its_field(override, field):
    message = mistake(override)
    assert message.startswith(f"configuration: {field}: ")
    assert "(got " in message


def test_all_wrong_values_are_told_at_once():
    message = mistake("seed=-1", "image.size=1")
    assert "seed: " in message
    assert "image.size: " in message


def test_a_batch_that_does_not_divide_over_the_workers():
    message = mistake("data.batch_size=32", "train.workers=3")
    assert "data.batch_size=32 does not divide evenly over train.workers=3" in message


@pytest.mark.parametrize("warmup", ["5", "7.5"])
def test_a_warmup_that_leaves_nothing_of_the_epochs(warmup):
    message = mistake("train.epochs=5", f"train.warmup_epochs={warmup}")
    assert f"train.warmup_epochs={warmup} leaves nothing of train.epochs=5" in message


def test_no_warmup_goes_with_any_number_of_epochs():
    assert resolve_config({}, ["train.epochs=1", "train.warmup_epochs=0"]).train.epochs == 1


# Round trip


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("seed=3", "run.name=a-run", "data.dataset=s3://bucket/set"),
        ("run.name='12e5'", "train.learning_rate=1e-7", "train.cpus_per_worker=2"),
        ("run.name='2026-01-31'",),
    ],
)
def test_what_is_dumped_is_read_back_the_same(write, overrides):
    config = resolve_config({}, overrides)
    assert load_config(write(dump_config(config))) == config


def test_a_dump_holds_every_field_and_is_plain_yaml():
    tree = yaml.safe_load(dump_config(Config()))
    leaves = {
        f"{name}.{key}" for name, part in tree.items() if isinstance(part, dict) for key in part
    }
    assert set(tree) | leaves == set(field_paths())


def test_workers_are_a_number_or_a_range():
    assert load_config(None, ["train.workers=2"]).train.worker_range == (2, 2)
    ranged = load_config(None, ["train.workers=2..8"])
    assert ranged.train.worker_range == (2, 8)
    assert resolve_config(parse_yaml(dump_config(ranged), "again")) == ranged
    for wrong in ("8..2", "0..2", "0", "many", "true", "2.5"):
        assert "a number of at least 1, or a range" in mistake(f"train.workers={wrong}")
    assert "without an image" in mistake("data.batch_size=4", "train.workers=2..8")
