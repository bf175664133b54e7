"""What is in the store is complete, and comes back as it went in."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gfmsum.budget import BUDGETS
from gfmsum.mix import Mix
from gfmsum.records import Arm, Role, Run, Seen
from gfmsum.sensors import S1
from gfmsum.store import Store, to_json, write_folder, write_text

RUN = Run.of(Arm(Role.SOLO, Mix.equal(["s1"]), ("s1",)), BUDGETS["micro"], {}, 0, 0)


def save(store: Store, value: float = 1.0) -> None:
    store.save(
        RUN,
        {"w": np.full((2, 3), value, dtype=np.float32)},
        {"steps": 4},
        pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]}),
        (Seen("s1", S1.bands[:1], 10.0, (-11.0,), (4.0,)),),
        {"s1": np.zeros((1, 3, 2, 2, 1), dtype=np.float32)},
    )


def test_a_run_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not store.has(RUN)
    save(store)
    assert store.has(RUN)
    np.testing.assert_array_equal(store.weights(RUN)["w"], np.ones((2, 3)))
    assert store.ledger(RUN) == {"steps": 4}
    assert store.curve(RUN)["loss"].tolist() == [1.0, 0.5]
    assert store.pictures(RUN)["s1"].shape == (1, 3, 2, 2, 1)


def test_scores_belong_to_a_run_and_a_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store)
    scores, predictions = pd.DataFrame({"value": [0.5]}), pd.DataFrame({"item": ["a"]})
    store.save_probes(RUN, "k", scores, predictions)
    assert store.has_probes(RUN, "k") and not store.has_probes(RUN, "other")
    assert not store.has_probes(None, "k")
    assert store.load_probes(RUN, "k")[0].equals(scores)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "run", fail)
    assert list(tmp_path.iterdir()) == []


def test_whoever_finishes_first_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, 1.0)
    save(store, 2.0)
    assert store.weights(RUN)["w"][0, 0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == [RUN.fingerprint]


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "α")
    write_text(tmp_path / "a" / "b.txt", "β")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "β"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_json_refuses_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"x": float("inf")})
