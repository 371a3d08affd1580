import pytest
import timm
import torch

from btray.config import ModelConfig
from btray.core.zoo import CompactCNN, create_model
from btray.errors import UserError


def images(size, count=2):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def mistake(name, image_size=None):
    with pytest.raises(UserError) as caught:
        create_model(ModelConfig(name=name), 4, image_size)
    message = str(caught.value)
    assert message.startswith("model.name: ")
    assert "\n" not in message
    return message


# Our own network


def test_our_network_has_under_a_million_parameters():
    model = create_model(ModelConfig(), 4)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_our_network_is_one_of_timms():
    assert timm.is_model("btray_cnn")
    assert isinstance(timm.create_model("btray_cnn", num_classes=4, in_chans=1), CompactCNN)


@pytest.mark.parametrize("size", [32, 33, 64, 128, 224])
def test_our_network_takes_any_size(size):
    logits = create_model(ModelConfig(), 4, size).eval()(images(size))
    assert (logits.shape, logits.dtype) == ((2, 4), torch.float32)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_there_is_one_logit_a_class(classes):
    assert create_model(ModelConfig(), classes).eval()(images(64)).shape == (2, classes)


def test_our_networks_features_are_a_32nd_of_the_side():
    model = create_model(ModelConfig(), 4).eval()
    assert model.forward_features(images(128)).shape == (2, 192, 4, 4)


def test_our_network_starts_undecided():
    """The loss of the first step is that of a guess, log(classes)."""
    torch.manual_seed(0)
    probabilities = create_model(ModelConfig(), 4).eval()(images(64, 16)).softmax(dim=1)
    assert (probabilities - 0.25).abs().max() < 0.1


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return create_model(ModelConfig(), 4).state_dict()["head.weight"]

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_our_network_has_no_pretrained_weights():
    with pytest.raises(UserError, match="no pretrained weights"):
        timm.create_model("btray_cnn", pretrained=True)


# Every network


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", ["btray_cnn", "resnet18"])
def test_dropout_acts_in_training_alone(name, dropout):
    torch.manual_seed(0)
    model = create_model(ModelConfig(name=name, dropout=dropout), 4)
    batch = images(64, 4)
    model.train()
    same_in_training = torch.equal(model(batch), model(batch))
    model.eval()
    assert same_in_training == (dropout == 0)
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenetv3_small_100"])
def test_timms_networks_take_one_channel_and_give_our_classes(name):
    with torch.device("meta"):  # shapes alone: a VGG has 130 million weights to draw
        model = create_model(ModelConfig(name=name, dropout=0.2), 4, 64).eval()
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "levit_128s"])
def test_transformers_are_built_for_the_size_of_the_images(name):
    assert create_model(ModelConfig(name=name), 4, 64).eval()(images(64)).shape == (2, 4)


def test_a_transformer_without_a_size_keeps_its_authors():
    model = create_model(ModelConfig(name="vit_tiny_patch16_224"), 4).eval()
    assert model(images(224, 1)).shape == (1, 4)


def test_convolutions_are_laid_out_channels_last():
    weights = create_model(ModelConfig(name="resnet18"), 4).state_dict()["layer1.0.conv1.weight"]
    assert weights.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("image_size", [None, 64])
@pytest.mark.parametrize("name", ["btray_cnn", "resnet18"])
def test_a_new_network_is_ready_to_train(name, image_size):
    model = create_model(ModelConfig(name=name), 4, image_size)
    assert all(module.training for module in model.modules())


def test_trying_a_size_changes_nothing():
    """Neither the weights, nor the batch statistics, nor the next random number."""
    states = []
    for image_size in (None, 64):
        torch.manual_seed(0)
        states.append(
            (create_model(ModelConfig(), 4, image_size).state_dict(), torch.get_rng_state())
        )
    (plain, generator), (tried, generator_after) = states
    assert torch.equal(generator, generator_after)
    assert all(torch.equal(plain[key], tried[key]) for key in plain)


# What a user gets wrong


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnt18", "resnet18"), ("btray_cn", "btray_cnn"), ("vgg16bn", "vgg16_bn")],
)
def test_an_unknown_name_is_told_with_the_nearest(name, nearest):
    message = mistake(name)
    assert f"no architecture is called {name!r}; nearest: " in message
    assert nearest in message.partition("nearest: ")[2].split(", ")


@pytest.mark.parametrize("name", ["???", "", "hf-hub:somebody/something"])
def test_a_name_like_nothing_points_to_the_list(name):
    assert "see `timm.list_models()`" in mistake(name)


def test_an_unknown_set_of_weights_is_told():
    assert "Invalid pretrained tag (nowhere)" in mistake("resnet18.nowhere")


@pytest.mark.parametrize(
    ("name", "size"), [("btray_cnn", 16), ("inception_v3", 64), ("efficientformer_l1", 128)]
)
def test_a_network_that_cannot_take_the_size_is_told(name, size):
    assert f"{name} cannot be used with image.size={size}: " in mistake(name, size)
