"""The three networks of the course, and the input statistics that each expects.

Every network is a plain `nn.Module` from images [B, 3, H, W], of any size, to logits [B, 3]. It has `input_mean` and
`input_std` (three numbers each, for pixels in 0..1), and `spec`, from which `build` makes the network again.
"""

import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ._support.checks import check_flag, check_kind, check_whole
from ._support.paths import repository_dir
from .constants import CLASSES

IMAGENET_STATISTICS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF_STATISTICS = ([0.5] * 3, [0.5] * 3)  # pixels to -1..1
VIT_NAME = "google/vit-base-patch16-224-in21k"
VIT_REVISION = "b4569560a39a0f1af58e3ddaf17facf20ab919b0"
SMALL_VIT = dict(hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192)


def _finish(model, spec, statistics):
    if spec["network"] == "vit":
        from transformers import AttentionInterface

        AttentionInterface.register("xray_utils", _attend)
        model.config._attn_implementation = "xray_utils"
        model.register_forward_pre_hook(_take_any_size, with_kwargs=True)
    model.spec = spec
    model.input_mean, model.input_std = (list(map(float, values)) for values in statistics)
    return model


def _take_any_size(model, images, options):
    """Interpolate a ViT's position embeddings for images of another size (no cost otherwise)."""
    return images, {"interpolate_pos_encoding": True, **options}


def _attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **options):
    """Attention of a ViT by PyTorch's kernel; in bf16 on a CPU, where the kernel is slow, by two matrix products.

    query, key, value: [B, heads, T, width of a head]. Returns [B, T, heads, width of a head] and no weights.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or attention_mask is not None or dropout:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options |= dict(scaling=scaling, dropout=dropout)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    weights = (query * scaling @ key.mT).softmax(dim=-1)  # computed in fp32, kept in bf16: [B, heads, T, T]
    return (weights @ value).transpose(1, 2).contiguous(), None


def baseline_cnn(num_classes: int = 3, seed: int = 0) -> torch.nn.Module:
    """The small CNN of the original project: two conv blocks, 8 and 16 filters; 1,491 parameters for 3 classes."""
    check_whole("num_classes", num_classes, 2)
    check_whole("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(  # [B, 3, 224, 224]
            *[nn.Conv2d(3, 8, kernel_size=3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(8, 16, kernel_size=3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)],
            nn.AdaptiveMaxPool2d(1),  # [B, 16, 56, 56] -> [B, 16, 1, 1]
            nn.Flatten(),
            nn.Linear(16, num_classes),
        )
    return _finish(model, {"network": "baseline_cnn", "num_classes": num_classes}, HALF_STATISTICS)


def resnet18(weights: str | None = None, num_classes: int = 3, seed: int = 0) -> torch.nn.Module:
    """torchvision's ResNet18 (He et al. 2016, arXiv:1512.03385); 11,178,051 parameters for 3 classes.

    weights: None for random ones, "imagenet" for torchvision's (downloaded, hash checked), or a local file
    (.safetensors, or .pth with plain tensors). The last layer is always new.
    Raises FileNotFoundError for a missing file, ValueError for weights that do not fit, RuntimeError with a
    remedy when the download fails.
    """
    from torchvision import models

    check_whole("num_classes", num_classes, 2)
    check_whole("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.resnet18(num_classes=num_classes)
    if weights is not None:
        if str(weights).lower() == "imagenet":
            enum = models.ResNet18_Weights.IMAGENET1K_V1
            try:
                state = enum.get_state_dict(progress=False, check_hash=True)
            except Exception as error:
                raise RuntimeError(
                    f"weights: 'imagenet' could not be downloaded ({type(error).__name__}: {error}). Fetch {enum.url} "
                    "on another machine and pass its path as weights, or train from weights=None."
                ) from error
        else:
            state = load_weights(weights)
        layers = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        last = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
        try:
            model.load_state_dict(layers | last)
        except RuntimeError as error:  # other names, or tensors of other shapes
            raise ValueError(f"weights: {str(weights)!r} are not those of a ResNet18 ({str(error)[:200]}).") from error
    return _finish(model, {"network": "resnet18", "num_classes": num_classes}, IMAGENET_STATISTICS)


def load_weights(path):
    """The named tensors of a local file: .safetensors, or .pth read with `weights_only=True` (no code is run).

    Raises FileNotFoundError for a missing file, ValueError for one that holds anything but named tensors.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        raise FileNotFoundError(f"weights: {str(path)!r} is no file. Give a .safetensors or .pth file, or None.")
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            if zipfile.is_zipfile(path) and any(member.compress_type for member in zipfile.ZipFile(path).infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        raise ValueError(f"weights: {str(path)!r} could not be read as plain tensors ({_reason(error)}).") from error
    tensors = isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    if not tensors or not all(isinstance(name, str) for name in state):
        raise ValueError(f"weights: {str(path)!r} does not hold named tensors (a state_dict).")
    return state


def _reason(error):
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def tensors_of(model):
    """The `state_dict` on the CPU, each tensor in memory of its own: safetensors takes none that layers share."""
    whole = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=whole) for name, tensor in model.state_dict().items()}


def vit_weights(is_sample: bool = False) -> str:
    """The pretrained weights that the notebooks pass to `vit`.

    `XRAY_VIT_WEIGHTS` if it is set; else `data/vit_tiny` for the bundled sample, and `VIT_NAME` for other images.
    """
    check_flag("is_sample", is_sample)
    usual = str(repository_dir() / "data" / "vit_tiny") if is_sample else VIT_NAME
    return os.environ.get("XRAY_VIT_WEIGHTS") or usual


def vit(
    weights: str | None = VIT_NAME, num_classes: int = 3, freeze: bool = False, seed: int = 0, pretrained: bool = True
) -> torch.nn.Module:
    """A Hugging Face Vision Transformer with a new linear head (Dosovitskiy et al. 2021, arXiv:2010.11929).

    weights: a local folder with config.json and model.safetensors, a name on the Hub with a commit (as in
    "google/vit-large-patch16-224@<40 hex digits>"; the default is pinned to `VIT_REVISION`), or None for a small
    random one. Code in a weights folder is not run. freeze: train only the head, on fixed features. pretrained: False
    keeps the architecture of `weights` with random weights. For images of another size the position embeddings are
    interpolated. A folder without preprocessor_config.json gets the defaults of transformers' ViTImageProcessor, with
    a message. Save the weights or use `export_model`; do not pickle the object, whose attention `vit` registers.
    Raises RuntimeError with a remedy when the weights cannot be loaded.
    """
    import transformers

    check_whole("num_classes", num_classes, 2)
    check_whole("seed", seed)
    check_flag("freeze", freeze)
    check_flag("pretrained", pretrained)
    names = CLASSES if num_classes == len(CLASSES) else [f"class {i}" for i in range(num_classes)]
    labels = dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights is None:
            config = transformers.ViTConfig(**SMALL_VIT, **labels)
            model, statistics = transformers.ViTForImageClassification(config), HALF_STATISTICS
        else:
            model, statistics = _pretrained_vit(str(weights), labels)
            if not pretrained:
                torch.manual_seed(seed)
                model = transformers.ViTForImageClassification(model.config)
    model.vit.requires_grad_(not freeze)
    passing = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")  # not kept
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in passing}
    spec = {"network": "vit", "num_classes": num_classes, "freeze": freeze, "config": config}
    return _finish(model.float(), spec, statistics)


def _pretrained_vit(weights, labels):
    """A ViT with pretrained weights from a folder or the Hub and a new head for `labels`; mean and std of its input."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the new head is intended
    transformers.logging.disable_progress_bar()
    name, revision = weights, None
    try:
        if not os.path.isdir(name):  # on the Hub: a pinned commit
            name, _, revision = name.partition("@")
            revision = VIT_REVISION if name == VIT_NAME and not revision else revision
            if not re.fullmatch("[0-9a-f]{40}", revision):
                raise ValueError("no folder, and no name on the Hub with @ and a commit of 40 hex digits")
        options = dict(revision=revision, trust_remote_code=False)
        model, loading = transformers.ViTForImageClassification.from_pretrained(
            name,
            use_safetensors=True,
            attn_implementation="sdpa",  # a hostile config.json could name a kernel to fetch
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **labels,
            **options,
        )
        absent = [*loading["missing_keys"], *loading["mismatched_keys"]]  # the latter may be pairs with shapes
        absent = {key if isinstance(key, str) else key[0] for key in absent}
        if absent := sorted(key for key in absent if not key.startswith("classifier.")):
            raise ValueError(f"not those of a ViT: {len(absent)} tensors are missing, such as {absent[0]}")
        if not os.path.isdir(name) or os.path.isfile(os.path.join(name, "preprocessor_config.json")):
            processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
        else:
            processor = transformers.ViTImageProcessor()
            print(
                f"weights: {name!r} has no preprocessor_config.json. Pixels are normalised by the defaults of "
                f"ViTImageProcessor: mean {processor.image_mean}, std {processor.image_std}."
            )
        return model, (processor.image_mean, processor.image_std)
    except Exception as error:  # a broken or hostile folder may raise anything
        raise RuntimeError(
            f"weights: {weights!r} could not be loaded ({_reason(error)}). With a network: "
            f"huggingface_hub.snapshot_download({VIT_NAME!r}, revision={VIT_REVISION!r}, local_dir='vit-weights'), "
            "then pass weights='vit-weights'. Without: weights=None trains a small one from random weights."
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _vit_of_spec(spec):
    import transformers

    with torch.random.fork_rng(devices=[]):
        model = transformers.ViTForImageClassification(transformers.ViTConfig.from_dict(spec["config"]))
    model.vit.requires_grad_(not spec["freeze"])
    return model


NETWORKS = {  # the networks of the course, and how `build` makes each from its `spec`
    "baseline_cnn": lambda spec: baseline_cnn(num_classes=spec["num_classes"]),
    "resnet18": lambda spec: resnet18(num_classes=spec["num_classes"]),
    "vit": _vit_of_spec,
}


def build(spec, input_mean, input_std):
    """A network from the `spec` of another (as in a run's config.json), with random weights."""
    return _finish(NETWORKS[spec["network"]](spec), spec, (input_mean, input_std))


def logits_of(model, images):
    """Logits [B, classes] of normalised images [B, 3, H, W]; Hugging Face models wrap theirs."""
    output = model(images)
    return getattr(output, "logits", output)


@contextmanager
def evaluating(model):
    """`model` in evaluation mode, as a context that gives its device; restores the mode of each layer."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        for module, mode in modes:
            module.training = mode


def check_model(model, use=False):
    """Raise ValueError unless `model` is a network; use: and has `input_mean` and `input_std`."""
    check_kind("model", model, nn.Module, "network", "a torch.nn.Module, such as baseline_cnn() or run.model")
    if use and not (hasattr(model, "input_mean") and hasattr(model, "input_std")):
        raise ValueError(
            f"model: a {type(model).__name__} does not say what pixels it expects; for -1 to 1 set model.input_mean = "
            "model.input_std = [0.5] * 3."
        )


def count_parameters(model: torch.nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that are trained."""
    check_model(model)
    check_flag("trainable", trainable)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
