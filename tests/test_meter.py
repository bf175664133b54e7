"""What a run took of its machine: added up between entries, and not known where nothing tells."""

from pathlib import Path

import pytest

from gfmsum import meter
from gfmsum.budget import Ledger
from gfmsum.meter import Meter


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two CPU packages and a part of one, as Linux shows them."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000")
    monkeypatch.setattr(meter, "RAPL", tmp_path)
    return tmp_path


def test_times_add_up_and_memory_is_the_largest() -> None:
    watch, ledger = Meter("cpu"), Ledger(seconds=100.0, peak_bytes=2**60)
    assert sum(range(2_000_000)) > 0
    watch.enter(ledger)
    first = ledger.seconds
    assert 100 < first < 200
    assert 0 < ledger.device_seconds <= 50 * (first - 100)
    assert ledger.peak_bytes == 2**60
    watch.enter(ledger)
    assert first <= ledger.seconds < first + 10
    fresh = Ledger()
    watch.enter(fresh)
    assert fresh.peak_bytes > 10 * 2**20  # an interpreter with libraries


def test_what_several_devices_spend_is_that_of_one_times_their_number() -> None:
    one, three = Meter("cpu"), Meter("cpu", devices=3)
    three._last = one._last
    now = one._read()
    one._read = three._read = lambda: now  # type: ignore[method-assign]
    ledgers = Ledger(), Ledger()
    one.enter(ledgers[0])
    three.enter(ledgers[1])
    assert ledgers[1].device_seconds == pytest.approx(3 * ledgers[0].device_seconds)
    assert ledgers[1].seconds == ledgers[0].seconds


def test_energy_is_that_of_the_packages(packages: Path) -> None:
    watch, ledger = Meter("cpu"), Ledger()
    (packages / "intel-rapl:1" / "energy_uj").write_text("3500000")
    (packages / "intel-rapl:0:0" / "energy_uj").write_text("9000000")  # counted in its package
    watch.enter(ledger)
    assert ledger.joules == pytest.approx(2.5)
    watch.enter(ledger)
    assert ledger.joules == pytest.approx(2.5)


def test_a_counter_that_overflowed_says_nothing(packages: Path) -> None:
    watch, ledger = Meter("cpu"), Ledger(joules=7.0)
    (packages / "intel-rapl:0" / "energy_uj").write_text("5")
    watch.enter(ledger)
    assert ledger.joules == 7.0


def test_without_counters_energy_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "RAPL", tmp_path / "nothing")
    ledger = Ledger()
    Meter("cpu").enter(ledger)
    assert ledger.joules is None
