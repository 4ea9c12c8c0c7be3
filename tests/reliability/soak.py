"""Two hundred fits in a row: memory and open files."""

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def many_fits(fits):
    """What a student does, `fits` times in one process; memory [MiB] and open files after each."""
    os.environ.update(TQDM_DISABLE="1", ACCELERATE_USE_CPU="true", MPLBACKEND="agg")
    import numpy as np
    import pandas as pd
    import psutil
    import torch

    import xray_utils as xu
    from xray_utils.prepared import PreparedData, Split

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def side(n, prefix):
        files = [f"{prefix}{i}.png" for i in range(n)]
        rows = pd.DataFrame({"file": files, "label": list(xu.CLASSES) * (n // 3), "group": files, "mirrored": False})
        return Split(rows, rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), np.arange(n))

    data = PreparedData(
        side(12, "a"), side(6, "b"), side(6, "c"), {"protocol": "grouped", "seed": 0, "mirror": False, "size": 16}
    )
    process, memory, files = psutil.Process(), [], []
    count_files = process.num_handles if os.name == "nt" else process.num_fds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XRAY_OUTPUTS"] = folder
        for i in range(fits):
            run = xu.fit(xu.baseline_cnn(seed=i), data, f"run{i}", epochs=2, batch_size=4, seed=i, precision="fp32")
            predictions = xu.predict(run.model, data.test)
            xu.save_results(run, predictions)
            xu.plot_history(run.history)
            xu.plot_confusion_matrix(predictions).canvas.draw()
            memory.append(process.memory_info().rss / 2**20)
            files.append(count_files())
    return memory, files


def soak_fits(fits):
    """`many_fits` in a process of its own; a quarter of them is the warm-up."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        memory, files = pool.submit(many_fits, fits).result()
    warm = fits // 4
    grown = max(memory[-10:]) - memory[warm]
    return {
        "fits": fits,
        "memory_mib_after_warm_up": round(memory[warm], 1),
        "memory_mib_at_the_end": round(max(memory[-10:]), 1),
        "open_files_after_warm_up": files[warm],
        "open_files_at_the_end": files[-1],
        "flat": grown < 0.05 * memory[warm] and files[-1] <= files[warm],
        "seconds": round(time.perf_counter() - start),
    }


def run(fits=200) -> dict:
    """The figures of `fits` fits in a row."""
    return {"fits": soak_fits(fits)}


if __name__ == "__main__":
    print(run(*map(int, sys.argv[1:])))
