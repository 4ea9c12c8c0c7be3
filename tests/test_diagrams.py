"""Diagrams come from the networks: change a network, and its diagram changes."""

import matplotlib
import pytest
import torch
from test_plotting import draw, texts_of
from torch import nn

import xray_utils as xu
from xray_utils.lab import diagrams

matplotlib.use("Agg")
NETWORKS = {"baseline": xu.baseline_cnn, "resnet18": xu.resnet18, "vit": lambda: xu.vit(None)}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_parameter_is_counted_once_and_the_network_is_left_as_it_was(name):
    model = NETWORKS[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages = diagrams._stages(model, torch.zeros(1, 3, 224, 224))
    assert sum(stage[3] for stage in stages) == xu.count_parameters(model)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_baseline_shows_each_layer_with_its_shape():
    texts = texts_of(draw(xu.plot_network, xu.baseline_cnn()))
    assert [text for text in texts if text.startswith("Conv2d")] == ["Conv2d"] * 2
    assert "16 x\n56 x\n56" in texts and "78% of the 1,491 parameters are in one part, Conv2d" in texts
    wide = xu.baseline_cnn()
    wide[4], wide[5], wide[10] = nn.Conv2d(8, 40, 3, padding=1), nn.BatchNorm2d(40), nn.Linear(40, 3)
    texts = texts_of(draw(xu.plot_network, wide))
    assert "40 x\n56 x\n56" in texts and "16 x\n56 x\n56" not in texts and "2.9 k" in texts


def test_resnet18_shows_its_stages_and_a_shallower_one_fewer():
    model = xu.resnet18()
    texts = texts_of(draw(xu.plot_network, model))
    assert all(f"layer{i}" in texts for i in (1, 2, 3, 4)) and "512 x\n7 x\n7" in texts
    assert "75% of the 11,178,051 parameters are in one part, layer4" in texts
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, 3)
    texts = texts_of(draw(xu.plot_network, model))
    assert "layer4" not in texts and "512 x\n7 x\n7" not in texts and "256 x\n14 x\n14" in texts


def test_the_vit_shows_tokens_and_how_often_a_layer_repeats():
    import transformers

    texts = texts_of(draw(xu.plot_network, xu.vit(None)))
    assert {"196 x 96", "197 x 96", "4 x\nViT\nLayer"} <= set(texts)
    config = transformers.ViTConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, intermediate_size=384,
                                    patch_size=32, num_labels=3)  # fmt: skip
    texts = texts_of(draw(xu.plot_network, transformers.ViTForImageClassification(config)))
    assert {"49 x 96", "50 x 96", "2 x\nViT\nLayer"} <= set(texts)


def test_a_block_shows_its_own_steps():
    model = xu.resnet18()
    same, other = (texts_of(draw(xu.plot_residual_block, block)) for block in (model.layer1[0], model.layer2[0]))
    steps = ["conv 3x3\n64 to 64", "batch\nnorm", "ReLU", "conv 3x3\n64 to 64", "batch\nnorm", "+", "ReLU"]
    assert same == [*steps, "skip: x as it is", "x ", " y"]
    assert {"conv 1x1\n64 to 128\nstride 2", "skip: x, brought to the new shape"} <= set(other)
    model.layer1[0].bn2 = nn.Sigmoid()
    assert texts_of(draw(xu.plot_residual_block, model.layer1[0]))[:5] == [*steps[:4], "Sigmoid"]


def test_a_module_without_a_single_sum_is_refused():
    with pytest.raises(ValueError, match="block: it holds 2 sums of two paths, not one"):
        xu.plot_residual_block(xu.resnet18().layer1)
    with pytest.raises(ValueError, match="block: its steps cannot be followed"):
        xu.plot_residual_block(Unclear())


class Unclear(nn.Module):
    def forward(self, x):
        return x + x if x.mean() > 0 else x


def test_a_network_of_shapes_alone_can_be_drawn():
    """Where it lies does not matter: on a GPU, or nowhere, without weights."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    assert xu.plot_network(model).axes
