"""What each task could score: the same encoder, trained with ample labels instead of without any.

    uv run python experiments/learning/ceilings.py OUT sensors=s1+s2 [data.train=3000 data.val=500 ...]

Tunes a random start of the budget's encoder, all of it, on every task of the sensors with all labels, at the
learning rate that validation items choose. A task on which this ends near the floors is unlearnable at this
size; one on which it ends far above the frozen encoders is not learnt. Writes OUT/ceilings.csv as it goes.

  sensors=all  joined by +

All other words are those of python -m gfmsum.ablate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gfmsum.config import load
from gfmsum.words import read_words

AMPLE = ["data.train=3000", "data.val=500"]


def main(words: Sequence[str]) -> None:
    import torch
    from tqdm import tqdm

    from gfmsum.data.sources import open_source
    from gfmsum.pretrain import initialised
    from gfmsum.probe.features import Encoded
    from gfmsum.probe.fit import probe

    ours = [word for word in words if "=" not in word or word.startswith("sensors=")]
    (folder,), own = read_words(ours, ("sensors",))
    config = load([*AMPLE, *(word for word in words if word not in ours)])
    torch.set_num_threads(config.threads)
    source, rows = open_source(config.data), []
    named = own.get("sensors", "all")
    sensors = list(source.sensors) if named == "all" else named.split("+")
    start = initialised(config.budget, config.seed, 0).encoder
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for task in tqdm([task for sensor in sensors for task in source.tasks(sensor)], unit="task"):
        began = time.perf_counter()
        items = source.labelled(task, config.budget.model.image_px)
        for how in ("linear", "finetune"):
            found, _ = probe(Encoded(start), items, how, config.seed)
            rows.append(
                {
                    "sensor": task.sensor, "task": task.name, "labels": len(items.folds[0][0]),
                    "encoder": "random start" if how == "linear" else "supervised",
                    "value": found.value, "utility": found.utility, "rate at edge": found.edge,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )  # fmt: skip
        pd.DataFrame(rows).round(4).to_csv(out / "ceilings.csv", index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
