"""The same study as another processor computes it: utilities within what runs vary by, one kind of verdict?

    uv run python experiments/learning/processors.py OUT [key=value ...]

Conducts one study from nothing four times: with this processor's vector instructions and with fewer of
them (ATEN_CPU_CAPABILITY, see the table's first column), with one thread and with two. Rounding differs
between them in the last digits of every step. The other words are those of python -m gfmsum.ablate. Writes
OUT/processors.csv, a row per way and arm: utility and, in standard deviations of single runs, how far the
run lies from the first way's that differs most.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

WIDE = ("avx512", "avx2", "default")  # vector instructions, most first


def ways() -> list[tuple[str, int]]:
    """Kinds of instructions and numbers of threads, this processor's own first."""
    import torch

    own = torch.backends.cpu.get_cpu_capability().lower()
    less = WIDE[WIDE.index(own) + 1] if own in WIDE[:-1] else own
    return [(kind, threads) for kind in dict.fromkeys((own, less)) for threads in (1, 2)]


def conduct(out: Path, kind: str, threads: int, words: list[str]) -> dict[str, object]:
    """The verdict of one study from nothing."""
    folder = out / f"{kind}-{threads}"
    command = [
        sys.executable, "-m", "gfmsum.ablate", *words, f"threads={threads}", f"jobs={2 // threads}",
        f"out={folder}", f"store={folder}/store", "device=cpu",
    ]  # fmt: skip
    environment = os.environ | {"ATEN_CPU_CAPABILITY": kind, "WANDB_MODE": "disabled"}
    subprocess.run(command, check=True, env=environment)
    verdict: dict[str, object] = json.loads((folder / "verdict.json").read_text())
    return verdict


def main(words: list[str]) -> None:
    out, rows = Path(words[0]), []
    first: dict[str, list[float]] = {}
    for kind, threads in ways():
        verdict = conduct(out, kind, threads, words[1:])
        for arm, found in verdict["arms"].items():  # type: ignore[attr-defined]
            runs = found["replicates"]
            base = first.setdefault(arm, runs)
            spread = float(np.std(base, ddof=1))
            rows.append(
                {
                    "instructions": kind, "threads": threads, "arm": arm,
                    "utility": round(100 * float(np.mean(runs)), 3),
                    "sd of runs": round(100 * spread, 3),
                    "furthest run, in sd": round(
                        float(np.abs(np.subtract(runs, base)).max()) / spread if spread else 0.0, 3
                    ),
                    "verdict": verdict["kind"],
                }
            )  # fmt: skip
        table = pd.DataFrame(rows)
        table.to_csv(out / "processors.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
