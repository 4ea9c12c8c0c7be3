"""The three networks: their size, their seeds, weights from files good and bad, and the same network built again."""

import json
import pathlib
import shutil
import urllib.error

import pytest
import torch
from safetensors.torch import save_file

import xray_utils as xu
from xray_utils import models
from xray_utils.models import logits_of

TINY_VIT = dict(
    image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A tiny ViT with a head of five classes and its preprocessor, as a downloaded one would lie on disk."""
    import transformers

    folder = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT, num_labels=5)).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def donor():
    """The tensors of a ResNet18 for ImageNet's thousand classes, at random."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return resnet18().state_dict()


def networks(vit_folder):
    return {
        "baseline_cnn": (xu.baseline_cnn, 64),
        "resnet18": (xu.resnet18, 64),
        "small vit": (lambda **options: xu.vit(weights=None, **options), 224),
        "vit from a folder": (lambda **options: xu.vit(weights=vit_folder, **options), 32),
    }


NETWORKS = ["baseline_cnn", "resnet18", "small vit", "vit from a folder"]


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- size, seed, shape


def test_every_network_of_the_course_is_public_and_tested():
    assert all(callable(getattr(xu, name)) for name in models.NETWORKS)
    tested = {make().spec["network"] for name, (make, _) in networks(None).items() if name != "vit from a folder"}
    assert tested == set(models.NETWORKS)


def test_number_of_parameters():
    assert xu.count_parameters(xu.baseline_cnn()) == 1_491
    assert xu.count_parameters(xu.resnet18()) == 11_178_051


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_alone_decides_the_weights(name, vit_folder):
    make, _ = networks(vit_folder)[name]
    torch.manual_seed(1)
    first = make(seed=3)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert same(first, make(seed=3))
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers were used"
    assert not same(first, make(seed=4))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_classes", [3, 2])
def test_logits_have_a_column_a_class(name, num_classes, vit_folder):
    make, size = networks(vit_folder)[name]
    model = make(num_classes=num_classes).eval()
    assert models.logits_of(model, torch.zeros(2, 3, size, size)).shape == (2, num_classes)
    assert len(model.input_mean) == len(model.input_std) == 3


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18", "small vit"])
@pytest.mark.parametrize("num_classes", [1, 0, -3, 2.0, "3", None])
def test_a_bad_number_of_classes_is_refused(name, num_classes):
    make, _ = networks(None)[name]
    with pytest.raises(ValueError, match=f"num_classes: {num_classes!r}"):
        make(num_classes=num_classes)


# ---------------------------------------------------------------- resnet18


def save_weights(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("as_text", [True, False])
def test_resnet18_takes_a_local_file_and_a_new_last_layer(file, as_text, donor, tmp_path):
    path = save_weights(donor, tmp_path / file)
    state = xu.resnet18(weights=str(path) if as_text else path, seed=5).state_dict()
    fresh = xu.resnet18(seed=5).state_dict()
    for key, tensor in state.items():
        assert torch.equal(tensor, (fresh if key.startswith("fc.") else donor)[key]), key
    assert state["fc.weight"].shape == (3, 512)


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: without(state, "layer1.0.conv1.weight"),
        lambda state: {**state, "layer9.weight": torch.zeros(2)},
        lambda state: {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
    ],
    ids=["one missing", "one too many", "other shape"],
)
def test_weights_of_another_network_are_refused(suffix, spoil, donor, tmp_path):
    path = save_weights(spoil(donor), tmp_path / f"other{suffix}")
    with pytest.raises(ValueError, match="weights: .*other.* not those of a ResNet18"):
        xu.resnet18(weights=path)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "empty.pth", "list.pth", "numbers.pth"])
def test_a_file_of_no_weights_is_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"no weights" * 20 if name.startswith("broken") else b"")
    if name == "list.pth":
        torch.save([torch.zeros(2)], path)
    if name == "numbers.pth":
        torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=f"weights: .*{name}"):
        xu.resnet18(weights=path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights: .*nowhere.pth.* is no file. Give"):
        xu.resnet18(weights=tmp_path / "nowhere.pth")


class Bomb:
    """A pickle of this makes a file when it is read carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    mark, path = tmp_path / "it ran", tmp_path / "bomb.pth"
    torch.save({"conv1.weight": Bomb(mark)}, path)
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb is a dud, so the test would prove nothing"
    mark.unlink()
    with pytest.raises(ValueError, match="weights: .*bomb.pth"):
        xu.resnet18(weights=path)
    assert not mark.exists()


def test_imagenet_weights_are_fetched_with_their_hash_checked(donor, monkeypatch):
    asked = {}

    def fetch(url, *args, **options):
        asked.update(options, url=url)
        return dict(donor)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    model = xu.resnet18(weights="imagenet")
    assert torch.equal(model.conv1.weight, donor["conv1.weight"])
    assert asked["check_hash"] is True and asked["url"].endswith("resnet18-f37072fd.pth")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(RuntimeError, match="weights: 'imagenet'.*no network") as caught:
        xu.resnet18(weights="imagenet")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(caught.value)
    assert "pass its path as weights" in str(caught.value) and "weights=None" in str(caught.value)


# ---------------------------------------------------------------- vit


def test_vit_from_a_folder_has_its_weights_and_statistics(vit_folder):
    import transformers

    stored = transformers.ViTForImageClassification.from_pretrained(vit_folder)
    model = xu.vit(weights=str(vit_folder))
    assert same(model.vit, stored.vit)
    assert len(model.classifier.weight) == 3 and len(stored.classifier.weight) == 5, "the head is to be a new one"
    assert (model.input_mean, model.input_std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])


def test_frozen_vit_trains_its_head_alone(vit_folder):
    model = xu.vit(weights=vit_folder, freeze=True).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert xu.count_parameters(model, trainable=True) == 32 * 3 + 3 < xu.count_parameters(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(
        models.logits_of(model, torch.ones(2, 3, 32, 32)), torch.tensor([0, 1])
    ).backward()
    optimizer.step()
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert xu.count_parameters(xu.vit(weights=vit_folder), trainable=True) == xu.count_parameters(model)


def another_architecture(folder):
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    transformers.BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        shutil.rmtree,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut short" * 9),
        lambda folder: (folder / "config.json").write_text("{"),
        another_architecture,
    ],
    ids=["no folder", "no weights", "broken weights", "broken config", "a language model"],
)
def test_vit_weights_that_cannot_be_had_say_what_to_do(spoil, vit_folder, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(vit_folder, folder)
    spoil(folder)
    with pytest.raises(RuntimeError, match="weights: .* could not be loaded") as caught:
        xu.vit(weights=folder)
    assert "snapshot_download" in str(caught.value) and "weights=None" in str(caught.value)


def test_a_folder_without_the_settings_of_its_pixels_gets_the_defaults_and_says_so(vit_folder, tmp_path, capsys):
    folder = shutil.copytree(vit_folder, tmp_path / "weights")
    whole = xu.vit(folder)
    assert "preprocessor_config.json" not in capsys.readouterr().out
    (folder / "preprocessor_config.json").unlink()
    model = xu.vit(folder)
    assert "has no preprocessor_config.json" in capsys.readouterr().out
    assert model.input_mean == model.input_std == [0.5] * 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_random_weights_of_the_same_network_depend_on_the_seed_alone(vit_folder):
    known, first, again, other = (
        xu.vit(vit_folder, seed=seed, pretrained=pretrained).vit.state_dict()
        for seed, pretrained in ((0, True), (0, False), (0, False), (1, False))
    )
    name = (
        "layers.0.attention.q_proj.weight"
        if "layers.0.attention.q_proj.weight" in known
        else next(key for key in known if key.endswith("weight") and known[key].ndim == 2)
    )
    assert known.keys() == first.keys() and torch.equal(first[name], again[name])
    assert not torch.equal(first[name], known[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("network", [xu.baseline_cnn, xu.resnet18, lambda: xu.vit(None)])
@pytest.mark.parametrize("size", [112, 224])
def test_every_network_takes_both_sizes(network, size):
    with torch.no_grad():
        logits = logits_of(network().eval(), torch.rand(2, 3, size, size))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_a_vit_interpolates_its_positions_for_another_size_alone():
    torch.manual_seed(0)
    model = xu.vit(None).eval()
    torch.nn.init.normal_(model.vit.embeddings.position_embeddings)
    small, own = torch.rand(2, 3, 112, 112), torch.rand(2, 3, 224, 224)
    positions = model.vit.embeddings.position_embeddings.detach().clone()
    places = positions[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    places = torch.nn.functional.interpolate(places, (7, 7), mode="bicubic").flatten(2).transpose(1, 2)
    config = type(model.config).from_dict({**model.config.to_dict(), "image_size": 112})
    plain = type(model)(config).eval()
    state = {**model.state_dict(), "vit.embeddings.position_embeddings": torch.cat([positions[:, :1], places], 1)}
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(model(small).logits, plain(small).logits, atol=1e-5)
        before = model(own).logits
        model._forward_pre_hooks.clear(), model._forward_pre_hooks_with_kwargs.clear()
        assert torch.equal(before, model(own).logits)
        with pytest.raises(ValueError, match="doesn't match model"):
            model(small)


def test_the_weights_of_the_sample_are_in_the_box(monkeypatch):
    monkeypatch.delenv("XRAY_VIT_WEIGHTS", raising=False)
    assert xu.vit_weights() == xu.VIT_NAME
    folder = pathlib.Path(xu.vit_weights(is_sample=True))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_500_000
    assert xu.vit(folder).config.image_size == 112
    monkeypatch.setenv("XRAY_VIT_WEIGHTS", "mine")
    assert xu.vit_weights() == xu.vit_weights(is_sample=True) == "mine"


def test_vit_from_the_hub_is_pinned_and_without_network_says_what_to_do(monkeypatch):
    import transformers

    asked = {}

    def fail(name, **options):
        asked.update(options, name=name)
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.ViTForImageClassification, "from_pretrained", fail)
    verbosity = transformers.logging.get_verbosity()
    with pytest.raises(RuntimeError, match="couldn't connect.*snapshot_download.*local_dir='vit-weights'"):
        xu.vit()
    assert asked["name"] == xu.VIT_NAME and asked["revision"] == models.VIT_REVISION
    assert asked["use_safetensors"] and not asked["trust_remote_code"]
    assert transformers.logging.get_verbosity() == verbosity


# ---------------------------------------------------------------- build


@pytest.mark.parametrize("name", [*NETWORKS, "frozen vit"])
def test_build_makes_the_same_network_again(name, vit_folder):
    all_networks = networks(vit_folder)
    make, size = all_networks.get(name, (lambda **_: xu.vit(weights=vit_folder, freeze=True), 32))
    model = make(seed=2)
    spec, mean, std = json.loads(json.dumps([model.spec, model.input_mean, model.input_std]))  # as a config.json
    before = torch.random.get_rng_state()
    again = models.build(spec, mean, std)
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers were used"
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = (models.logits_of(network.eval(), images) for network in (model, again))
    assert torch.equal(wanted, got) and wanted.std() > 0
    assert (again.input_mean, again.input_std, again.spec) == (model.input_mean, model.input_std, spec)
    assert xu.count_parameters(again, trainable=True) == xu.count_parameters(model, trainable=True)


def test_attention_in_bf16_is_as_exact_as_the_kernel_it_replaces(monkeypatch):
    """Logits and gradients of the ViT, by its own attention and by PyTorch's kernel, against fp32."""
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def found(attention, bf16):
        model = xu.vit(weights=None)
        model.config._attn_implementation = attention or model.config._attn_implementation
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images).logits.float()
        logits.square().sum().backward()
        return logits.detach(), torch.cat([weights.grad.flatten() for weights in model.parameters()])

    exact, kernel = found(None, False), found("sdpa", True)
    assert all(map(torch.equal, exact, found("sdpa", False)))  # in fp32 it is that kernel
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("slow kernel")
    )
    for one, other, truth in zip(found(None, True), kernel, exact, strict=True):
        assert 0 < (one - truth).norm() <= 1.5 * (other - truth).norm() < 0.02 * truth.norm()
