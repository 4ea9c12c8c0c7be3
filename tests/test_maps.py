"""Where does a network look: maps by hand, on a planted marker, in the lungs, and after the weights are drawn anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from phantoms import draw_phantom
from torch import nn
from torch.nn import functional as F

import xray_utils as xu
from xray_utils.batches import to_input
from xray_utils.lab import lungs, saliency
from xray_utils.prepared import Split


def make_split(pixels):
    rows = pd.DataFrame({"file": [f"{i}.png" for i in range(len(pixels))], "label": "covid", "mirrored": False})
    return Split(rows, pixels, np.arange(len(pixels)))


@pytest.fixture
def noise():
    return make_split(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))


def state_of(model):
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    return model.training, hooks, [(p.grad, p.requires_grad) for p in model.parameters()]


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("target", [None, "virus", ["covid", "virus", "normal", "covid", "virus"]])
def test_grad_cam_of_a_network_with_average_pooling_is_the_class_activation_map(noise, target):
    torch.manual_seed(0)  # there the gradient is the weight of the last layer (Zhou et al. 2016)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    model.input_mean, model.input_std = [0.4] * 3, [0.2] * 3
    model.train()
    before = state_of(model)
    found = xu.grad_cam(model, noise, target, layer="1", batch_size=2)
    assert state_of(model) == before, "the model is to be left as it was"
    with torch.no_grad():
        x = to_input(noise.take(np.arange(5)), model, "cpu")
        classes = model(x).argmax(1).tolist() if target is None else [xu.CLASSES.index(t) for t in (
            [target] * 5 if isinstance(target, str) else target)]  # fmt: skip
        wanted = torch.einsum("bc,bchw->bhw", model[4].weight[classes], model[1](model[0](x))).relu()[:, None]
        wanted = F.interpolate(wanted, size=(32, 32), mode="bilinear")[:, 0]
        wanted = (wanted / wanted.amax((1, 2), keepdim=True).clamp(min=1e-12)).numpy()
    assert found.shape == (5, 32, 32) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("make", [xu.baseline_cnn, xu.resnet18])
def test_the_networks_of_the_course_have_maps_even_when_frozen(make, noise):
    model = make().eval().requires_grad_(False)
    assert xu.saliency_maps(model, noise, "normal").shape == (5, 32, 32)
    assert not model(torch.zeros(1, 3, 32, 32)).requires_grad


class Tokens(nn.Module):
    """Patches with a class token and another before them: [B, 2 + 16, 8]. The logits are those of the class token."""

    def __init__(self, mean=False):
        super().__init__()
        self.patches, self.before, self.norm = nn.Conv2d(3, 8, 8, stride=8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.first, self.mean = nn.Parameter(torch.zeros(2, 8)), mean

    def forward(self, images):
        patches = self.patches(images).flatten(2).mT
        tokens = self.before(torch.cat([self.first.expand(len(images), -1, -1), patches], 1))
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens)[0])
        return self.head(tokens.mean(1) if self.mean else tokens[:, 0])


class ClassAttention(Tokens):
    """As in CaiT: the last normalisation sees the class token alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, images):
        patches = self.norm(self.patches(images).flatten(2).mT)
        first = self.first[:1].expand(len(images), -1, -1)
        return self.head(self.attention(first, patches, patches)[0])


OWN = {  # networks, and the layer whose output is weighed
    "class token": (Tokens, "before"),
    "mean of the tokens": (lambda: Tokens(mean=True), "norm"),
    "class attention": (ClassAttention, "norm"),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), "features"),
    "densenet": (lambda: torchvision.models.densenet121(num_classes=3), "features"),
    "baseline_cnn": (xu.baseline_cnn, "7"),
    "timm resnet18": ("resnet18", "layer4"),
    "timm vit": ("vit_tiny_patch16_224", "blocks.11.norm1"),
}


@pytest.mark.parametrize("case", OWN)
def test_the_layer_of_a_map_is_found_and_the_network_left_as_it_was(case):
    make, layer = OWN[case]
    size = 224 if "vit" in case else 32 if make in (Tokens, ClassAttention) or "mean" in case else 64
    split = make_split(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8))
    torch.manual_seed(0)
    if isinstance(make, str):
        model = pytest.importorskip("timm").create_model(make, pretrained=False, num_classes=3)
    else:
        model = make()
    model.input_mean = model.input_std = [0.5] * 3
    before, state = state_of(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = xu.saliency_maps(model, split, ["virus", "covid"])
    assert np.array_equal(found, xu.grad_cam(model, split, ["virus", "covid"], layer)) and found.max() == 1
    other = saliency.randomised(model)
    assert state_of(model) == before and all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    for (name, mine), its in zip(model.named_parameters(), other.parameters(), strict=True):
        assert mine.unique().numel() < 10 or not torch.equal(mine, its), name


def test_grad_cam_of_tokens_is_that_of_their_patches():
    torch.manual_seed(0)
    model = Tokens().eval()
    model.input_mean = model.input_std = [0.5] * 3
    split = make_split(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
    kept = []
    model.before.register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(to_input(split.take([0]), model, "cpu"))[0, 2].backward(inputs=[kept[0].retain_grad() or kept[0]])
    patches, gradient = kept[0][0, 2:].detach(), kept[0].grad[0, 2:]
    coarse = (patches * gradient.mean(0)).sum(1).relu().reshape(1, 1, 4, 4)
    wanted = F.interpolate(coarse, size=(32, 32), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(xu.grad_cam(model, split, "virus")[0], wanted / wanted.max(), atol=1e-5)


def test_attention_rollout_by_hand_and_the_network_as_before():
    split = make_split(np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8))
    model = xu.vit(weights=None).train()
    implementation = model.config._attn_implementation
    found = xu.saliency_maps(model, split)
    assert implementation != "eager" and model.config._attn_implementation == implementation and model.training
    model.eval()
    seen = []  # the same attention from queries and keys
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        for name, layer in model.named_modules()
        if name.endswith((".query", ".key", ".q_proj", ".k_proj"))
    ]
    with torch.no_grad():
        model(to_input(split.take(np.arange(3)), model, "cpu"))
    for hook in hooks:
        hook.remove()
    rollout, heads = np.eye(197)[None], model.config.num_attention_heads
    for query, key in zip(seen[::2], seen[1::2], strict=True):
        q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key))
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1).numpy()
        rollout = (attention + np.eye(197)) / 2 @ rollout
    wanted = torch.from_numpy(rollout[:, 0, 1:].reshape(3, 1, 14, 14))
    wanted = F.interpolate(wanted, size=(224, 224), mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(found, wanted / wanted.max(axis=(1, 2), keepdims=True), atol=1e-4)


@pytest.fixture(scope="module")
def markered(tmp_path_factory):
    """A baseline that has learned a marker in the corner, and its test side; the corner as a mask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        data = xu.load_data(size=64)
        sides = {side: xu.plant_marker(getattr(data, side), share=0.2) for side in ("train", "val", "test")}
        run = xu.fit(xu.baseline_cnn(), replace(data, **sides), "marker", epochs=5, lr=0.01, batch_size=8)
    corner = np.zeros((len(sides["test"]), 64, 64), bool)
    corner[:, :17, :17] = True
    return run.model, sides["test"], corner


def test_the_map_of_a_network_that_reads_a_marker_lies_on_the_marker(markered):
    model, split, corner = markered
    assert (xu.predict(model, split).predicted == split.rows.label).mean() == 1
    shares = [
        xu.share_in_lungs(xu.saliency_maps(one, split, split.rows.label.tolist()), corner).share.mean()
        for one in (model, *(saliency.randomised(model, seed) for seed in range(3)))
    ]
    area = corner.mean()
    assert shares[0] > 5 * area and shares[0] > 2 * np.nanmean(shares[1:])


def test_new_weights_give_another_map_and_the_same_weights_the_same(markered, monkeypatch):
    model, split, _ = markered
    found = xu.sanity_check(model, split)
    assert len(found) == len(split) and abs(np.nanmean(found)) < 0.5
    monkeypatch.setattr(saliency, "randomised", lambda model, seed: model)
    np.testing.assert_allclose(xu.sanity_check(model, split), 1)


@pytest.mark.parametrize("make", [xu.baseline_cnn, lambda: xu.vit(weights=None)])
def test_random_weights_are_not_those_that_training_began_with(make):
    model = make()
    others = [dict(saliency.randomised(model, seed).named_parameters()) for seed in (0, 0, 1)]
    for name, mine in model.named_parameters():
        if mine.ndim > 1 and mine.numel() > 100 and mine.std() > 0:
            its, again, another = (other[name].detach().ravel() for other in others)
            assert torch.equal(its, again) and not torch.equal(its, another), name
            assert abs(np.corrcoef(mine.detach().ravel(), its)[0, 1]) < 0.3, name


# ---------------------------------------------------------------- in the lungs?


def test_shares_by_hand():
    masks = np.zeros((3, 4, 4), bool)
    masks[:, :2] = True
    one = np.zeros((4, 4))
    one[0, 0], one[3, 3] = 3, 1
    table = xu.share_in_lungs(np.stack([np.ones((4, 4)), one, np.zeros((4, 4))]), masks)
    np.testing.assert_allclose(table.share, [0.5, 0.75, np.nan])
    np.testing.assert_allclose(table.area, 0.5)
    np.testing.assert_allclose(table.difference, [0, 0.25, np.nan])


def test_the_interval_of_a_mean_is_wider_where_images_of_a_patient_agree():
    values = pd.DataFrame({"share": np.repeat(np.random.default_rng(0).normal(size=50), 4)})
    alone = xu.grouped_mean(values, np.arange(200))
    together = xu.grouped_mean(values, np.repeat(np.arange(50), 4))
    assert alone["share"] == together["share"] == pytest.approx(values.share.mean())
    width = [np.ptp(one["share_interval"]) for one in (alone, together)]
    assert width[0] == pytest.approx(3.92 * values.share.std() / 200**0.5, rel=0.1)
    assert width[1] == pytest.approx(2 * width[0], rel=0.15)
    less = xu.grouped_mean(values.assign(share=values.share.mask(values.index < 4)), np.repeat(np.arange(50), 4))
    assert less["images"] == 196 and less["groups"] == 49


# ---------------------------------------------------------------- lung fields


def dice(a, b):
    return 2 * (a & b).sum(axis=(1, 2)) / (a.sum(axis=(1, 2)) + b.sum(axis=(1, 2)))


@pytest.fixture(scope="module")
def phantoms():
    drawn = [draw_phantom(xu.CLASSES[i % 3], 9000 + i, (150, 150)) for i in range(12)]
    return np.stack([np.repeat(image[..., None], 3, -1) for image, _ in drawn]), np.stack([mask for _, mask in drawn])


def test_lung_fields_of_phantoms_are_those_that_were_drawn(phantoms):
    pixels, true = phantoms
    found = xu.lung_fields(pixels)
    assert found.masks.dtype == bool and found.masks.shape == true.shape
    assert dice(found.masks, true).mean() > 0.93 and dice(found.masks, true).min() > 0.85
    assert found.trusted.mean() > 0.8
    mirrored = xu.lung_fields(np.ascontiguousarray(pixels[:, :, ::-1])).masks[:, :, ::-1]
    assert dice(mirrored, found.masks).min() > 0.99


def test_what_is_no_chest_is_not_trusted(phantoms):
    pixels, _ = phantoms
    rng = np.random.default_rng(0)
    others = [
        np.zeros_like(pixels[:4]),
        np.full_like(pixels[:4], 200),
        rng.integers(0, 256, pixels[:4].shape, dtype=np.uint8),
        np.ascontiguousarray(pixels[:4, :, :75]).repeat(2, axis=2),  # one lung
    ]
    for pictures in others:
        assert not xu.lung_fields(pictures).trusted.any()


def test_a_network_for_lungs_is_learned_the_same_twice(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "results" / "scripts"))
    import lung_network

    states = []
    for _ in range(2):
        torch.rand(3)  # whatever was drawn before
        before = torch.get_rng_state()
        states.append(lung_network.train(phantoms=6, steps=2, batch=4).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert lungs.WEIGHTS.stat().st_size < 300_000
