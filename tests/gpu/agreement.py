"""Does the GPU compute what the CPU computes? One step, whole trainings, a kill, predictions, maps, two processes.

Every tolerance is derived on the CPU, in the same call, from the error of bf16: of one step against float64, of whole
trainings against fp32 (as they are, and from weights rounded at random by one unit), of answers against fp32. On the
GPU bf16 may be three times as far off. fp32 and fp16 may be as far off as bf16 is on the CPU; eight times less is
expected, since fp16, and TF32, in which cuDNN convolves "fp32", have three more significant bits.
`python tests/gpu/agreement.py` is one child of these tests: a training that is killed, or one of two processes.
"""

import copy
import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

import material as m  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import xray_utils as xu  # noqa: E402
from xray_utils._support import session as session_module  # noqa: E402
from xray_utils.batches import to_input  # noqa: E402
from xray_utils.models import logits_of  # noqa: E402

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NETWORKS = {"baseline_cnn": xu.baseline_cnn, "resnet18": xu.resnet18, "vit": lambda: xu.vit(xu.vit_weights(True))}
EPOCHS, LR, DRAWS = 3, 1e-3, 2
ALLOWED = {"fp32": 1, "fp16": 1, "bf16": 3}  # times the error of bf16 on the CPU
FIRST_SCALE = 1024  # of the loss in fp16: from 65536 the first steps may be skipped, and the losses differ
LOSSES = ["train_loss", "val_loss"]
MOMENTUM = functools.partial(torch.optim.SGD, momentum=0.9)  # Adam divides by the gradient: it amplifies rounding


def fit(network, data, name, precision, model=None):
    init, (device, _, *rest) = torch.amp.GradScaler.__init__, torch.amp.GradScaler.__init__.__defaults__
    scaled = mock.patch.object(init, "__defaults__", (device, float(FIRST_SCALE), *rest))
    with mock.patch.dict(session_module.OPTIMIZERS, adam=MOMENTUM), scaled:
        model = NETWORKS[network]() if model is None else model
        return xu.fit(model, data, name, EPOCHS, LR, min(32, len(data.train)), precision=precision)


def apart(one, other):
    """The greatest relative difference."""
    one, other = (np.asarray(values, float) for values in (one, other))
    return float(np.abs(one - other).max() / np.abs(other).max())


def verdict(difference, tolerance):
    return {"difference": difference, "tolerance": tolerance, "within": bool(difference <= tolerance)}


def rounded(model, unit, seed):
    """A copy whose weights are each moved by up to one unit, at random."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.rand(parameter.shape, generator=generator).to(parameter.device) * 2 - 1
        parameter.data *= 1 + unit * noise
    return model


# ---------------------------------------------------------------- one step


def step(model, data, precision, device, double=False):
    """Loss, logits and gradients (one vector) of one batch, on the CPU in float64; `double`: computed in it, too."""
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    images = to_input(data.train.take(np.arange(min(32, len(data.train)))), model, device)
    labels = torch.tensor(data.train.labels[: len(images)], device=device)
    if double:
        model, images = model.double(), images.double()
    mixed = torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32")
    with mixed:
        logits = logits_of(model, images)
    loss = F.cross_entropy(logits if double else logits.float(), labels)
    scale = FIRST_SCALE if precision == "fp16" else 1
    (scale * loss).backward()
    gradients = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]) / scale
    return {"loss": loss.detach().double().cpu(), "logits": logits.detach().double().cpu(), "gradients": gradients}


def off(found, reference):
    """How far a step is off: the length of the difference, relative."""
    return {key: float((found[key] - reference[key]).norm() / reference[key].norm()) for key in reference}


def one_step(stage, network, data):
    cpu, model = torch.device("cpu"), NETWORKS[network]()
    reference, found = step(model, data, "fp32", cpu, double=True), {}
    error = off(step(model, data, "bf16", cpu), reference)
    for precision, times in ((one, ALLOWED[one]) for one in stage.precisions):
        here = off(step(model, data, precision, stage.device), reference)
        found[precision] = {key: verdict(here[key], times * error[key]) for key in ("logits", "gradients")}
        found[precision]["loss"] = {"difference": here["loss"]}  # one number may be exact by luck: no tolerance
    return found


# ---------------------------------------------------------------- whole trainings


def moved(network, data, precision, unit, history):
    """How far the losses move, relative, as it is and if the first weights are rounded at random by one unit."""
    differences = []
    for seed in range(1 if len(data.train) < 50 else DRAWS):
        for one in (0, unit) if seed == 0 and precision != "fp32" else (unit,):
            model = rounded(NETWORKS[network](), one, seed)
            losses = fit(network, data, f"{network}_{precision}_{one}_{seed}", precision, model).history[LOSSES]
            differences.append(apart(losses, history))
    return max(differences)


def trainings(stage, network, data):
    """The losses of each precision against the CPU in fp32; also the runs, and the tolerances."""
    with m.on_the_cpu():
        history = fit(network, data, network, "fp32").history[LOSSES]
        error = moved(network, data, "bf16", torch.finfo(torch.bfloat16).eps / 2, history)
    tolerances = {precision: ALLOWED[precision] * error for precision in stage.precisions}
    found, runs = {"losses of the CPU": history.values.tolist()}, {}
    for precision in stage.precisions:
        runs[precision] = fit(network, data, f"{network}_{precision}", precision)
        losses = runs[precision].history[LOSSES]
        found[precision] = verdict(apart(losses, history), tolerances[precision]) | {"losses": losses.values.tolist()}
    return found, runs, tolerances


def use(stage, network, data, run):
    """Predictions, maps and the export of a run on the device against those of the CPU."""
    here, cpu = run.model, copy.deepcopy(run.model).cpu()
    again = fit(network, data, f"{network}_fp32", "fp32").model
    devices = {one: next(model.parameters()).device.type for one, model in (("fit", here), ("loaded", again))}
    target = None if network == "vit" else "covid"

    def answers(model):
        table = xu.predict(model, data.test)
        return table[[f"p_{name}" for name in xu.CLASSES]].to_numpy(), xu.saliency_maps(model, data.test, target)

    exact, ours = answers(cpu), answers(here)
    with torch.autocast("cpu", torch.bfloat16):
        rough = answers(cpu)
    found = {"devices": devices, "on the device": set(devices.values()) == {stage.device.type}}
    for what, one, other, bf16 in zip(("predict", "saliency"), ours, exact, rough, strict=True):
        found[what] = verdict(float(np.abs(one - other).mean()), ALLOWED["fp32"] * float(np.abs(bf16 - other).mean()))
    exported = load(xu.export_model(run), network)
    images = to_input(data.test.take(np.arange(4)), cpu, torch.device("cpu"))
    with torch.no_grad():
        difference = (logits_of(exported, images) - logits_of(cpu.eval(), images)).abs().max().item()
    return found | {"export": verdict(difference, 1e-4)}


def load(folder, network):
    """An export, as its card says."""
    if network != "baseline_cnn":
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification.from_pretrained(folder).eval()
    spec = importlib.util.spec_from_file_location("exported_baseline", folder / "baseline_cnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_model(folder / "model.safetensors")


# ---------------------------------------------------------------- killed, and finished on another device


def child(stage, network, precision, kill, **environment):
    """A process that trains; after epoch `kill` it kills itself (0: never)."""
    words = [network, precision, str(kill), str(int(stage.quick))]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // 4))} | environment
    options = dict(env=environment, capture_output=True, text=True, timeout=300 if stage.quick else 90)
    done = subprocess.run([sys.executable, __file__, *words], **options)
    if done.returncode != (-signal.SIGKILL if kill else 0):
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-1500:]}")


def killed(stage, network, precision, folder):
    """Killed after one epoch; but for fp16 killed on the CPU after the second. The caller finishes the third."""
    child(stage, network, precision, 1, XRAY_OUTPUTS=str(folder))
    if precision != "fp16":
        child(stage, network, precision, 2, XRAY_OUTPUTS=str(folder), ACCELERATE_USE_CPU="true")


def agreement(stage, networks=tuple(NETWORKS)):
    """Stage a."""
    plan = dict(zip(networks, stage.precisions[::-1], strict=False))  # each precision is killed once
    with m.quiet() as folder, ThreadPoolExecutor() as pool:
        data = m.sample(stage.quick)
        for network in networks:
            with stage.part(f"one step, {network}") as found:
                found |= one_step(stage, network, data)
        waiting = {n: pool.submit(killed, stage, n, p, folder / f"killed_{n}") for n, p in plan.items()}
        for network in networks:
            runs = None
            with stage.part(f"training, {network}") as found:
                figures, runs, tolerances = trainings(stage, network, data)
                found |= figures
            if runs is None:
                continue
            with stage.part(f"predict, saliency, export, {network}") as found:
                found |= use(stage, network, data, runs["fp32"])
            if network in plan:
                with stage.part(f"killed, finished on another device, {network}, {plan[network]}") as found:
                    waiting[network].result()
                    with mock.patch.dict(os.environ, XRAY_OUTPUTS=str(folder / f"killed_{network}")):
                        history = fit(network, data, "run", plan[network]).history[LOSSES]
                    one = runs[plan[network]].history[LOSSES]
                    found |= verdict(apart(history, one), tolerances[plan[network]])
                    found["the same bits"] = bool((history.values == one.values).all())


# ---------------------------------------------------------------- two processes


def processes(stage):
    """Stage e: two processes share each batch; on one GPU with gloo, on two with NCCL."""
    gpus = torch.cuda.device_count()
    networks = ("vit", "resnet18") if gpus else ("vit",)  # on CPUs BatchNorm sees the part of its process
    with m.quiet() as folder, ThreadPoolExecutor() as pool:
        data = m.sample(stage.quick)
        for network in networks:
            with stage.part(f"two processes, {network}") as found:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    common = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
                common["XRAY_OUTPUTS"] = str(folder / network)
                places = [dict(RANK=str(r), LOCAL_RANK=str(r if gpus != 1 else 0)) for r in range(2)]
                two = [pool.submit(child, stage, network, "fp32", 0, **common, **place) for place in places]
                one = fit(network, data, network, "fp32").history[LOSSES]
                unit = torch.finfo(torch.float16 if gpus else torch.float32).eps / 2  # TF32 rounds as fp16
                tolerance = 3 * moved(network, data, "fp32", unit, one)
                for process in two:
                    process.result()
                with mock.patch.dict(os.environ, XRAY_OUTPUTS=str(folder / network)):
                    history = xu.load_run("run", NETWORKS[network]()).history[LOSSES]
                found |= verdict(apart(history, one), tolerance) | {"backend": "nccl" if gpus > 1 else "gloo"}


def main(network, precision, kill, quick):
    """One child: train `run`; after epoch `kill` its own process is killed."""
    if os.environ.get("WORLD_SIZE") and torch.cuda.device_count() == 1:
        from accelerate import PartialState

        PartialState(backend="gloo")  # NCCL refuses two processes on one GPU
    data, save = m.sample(bool(int(quick))), session_module._save

    def save_and_die(*arguments):
        save(*arguments)
        if len(arguments[-1]) == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(session_module, "_save", save_and_die):
        print(json.dumps(fit(network, data, "run", precision).history[LOSSES].values.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
