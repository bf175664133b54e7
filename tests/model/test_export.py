"""Exported encoders: the same tokens, whole or not at all, and at home in TerraTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from gfmsum import __version__
from gfmsum.budget import BUDGETS, TINY, Architecture
from gfmsum.mix import Mix
from gfmsum.model.backbone import gfmsum_encoder
from gfmsum.model.encoder import grid_places
from gfmsum.model.export import (
    bands_of,
    export_encoder,
    load_encoder,
    main,
    register_terratorch,
)
from gfmsum.model.mae import MaskedAutoencoder
from gfmsum.records import Arm, Role, Run, Seen, fingerprint
from gfmsum.sensors import MODIS, S1, S2
from gfmsum.store import Store
from gfmsum.zoo import load

SEEN = (
    Seen("s1", S1.bands, 10.0, (-11.0, -18.0), (4.0, 4.5)),
    Seen("s2", S2.bands, 10.0, (0.2,) * len(S2.bands), (0.1,) * len(S2.bands)),
)


def keep(root: Path, model: Architecture = TINY) -> tuple[Path, MaskedAutoencoder]:
    """The folder of a run in a store, as a study leaves it, and the model in it."""
    torch.manual_seed(0)
    mae = MaskedAutoencoder(model).eval()
    mae.know(S2.bands)
    with torch.no_grad():
        for weight in mae.parameters():
            weight += 0.01 * torch.randn_like(weight)
    budget = replace(BUDGETS["micro"], model=model)
    run = Run.of(Arm(Role.MIX, Mix.equal(["s1", "s2"]), ("s1", "s2")), budget, {"k": [1]}, 0, 0)
    store = Store(root)
    weights = {name: value.numpy() for name, value in mae.state_dict().items()}
    store.save(run, weights, {"steps": 4}, pd.DataFrame({"step": [0]}), SEEN, {})
    return store.folder(run), mae


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    run, _ = keep(tmp_path / "store")
    return export_encoder(run, tmp_path / "encoder")


@pytest.mark.parametrize("embed", ["dynamic", "per_sensor"])
def test_tokens_are_the_same_to_the_last_bit(tmp_path: Path, embed: str) -> None:
    run, mae = keep(tmp_path / "store", replace(TINY, embed=embed))
    torch.manual_seed(9)
    want_next = torch.rand(1)
    torch.manual_seed(9)
    encoder = load_encoder(export_encoder(run, tmp_path / "encoder"))
    assert torch.equal(torch.rand(1), want_next)  # nobody else's random numbers are used
    assert not encoder.training and all(p.requires_grad for p in encoder.parameters())
    for bands, px in ((S2.bands, 32), (S1.bands, 48), (MODIS.bands, 16)):
        x = torch.randn(2, len(bands), px, px)
        for theirs, ours in zip(
            (mae.encoder.forward_features(x, bands), mae.encoder.embed(x, bands, 30.0)),
            (encoder.forward_features(x, bands), encoder.embed(x, bands, 30.0)),
            strict=True,
        ):
            assert torch.equal(theirs, ours)


def test_the_folder_says_what_is_in_it(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "config.json",
        "encoder.safetensors",
    ]
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert (
        config["gfmsum"] == __version__
        and config["recipe"] == Run.__dataclass_fields__["recipe"].default
    )
    assert config["sensors"] == ["s1", "s2"] and config["run"]["data"] == {"k": [1]}
    assert Architecture(**config["architecture"]) == TINY
    first, second = config["seen"]
    assert first["mean"] == [-11.0, -18.0] and second["deviation"] == [0.1] * len(S2.bands)
    assert first["bands"][1]["polarisation"] == "VH" and first["bands"][1]["unit"] == "dB"
    assert bands_of(exported, "s1") == S1.bands and bands_of(exported, "s2") == S2.bands
    with pytest.raises(ValueError, match="holds 2 such kinds of images; name a sensor"):
        bands_of(exported)
    stored = load_file(exported / "encoder.safetensors")
    assert set(stored) == set(MaskedAutoencoder(TINY).encoder.state_dict())


def test_our_own_go_through_the_zoo_too(exported: Path) -> None:
    x = torch.randn(1, 2, 32, 32)
    want = load_encoder(exported).embed(x, S1.bands)
    assert torch.equal(load("gfmsum", exported).embed(x, S1.bands), want)


def test_nothing_half_written_and_nothing_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = keep(tmp_path / "store")
    out = tmp_path / "out" / "encoder"

    def full(*args: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("gfmsum.model.export.to_json", full)
        with pytest.raises(OSError, match="disk full"):
            export_encoder(run, out)
    assert list(out.parent.iterdir()) == []
    export_encoder(run, out)
    with pytest.raises(ValueError, match="encoder: exists already; name another folder"):
        export_encoder(run, out)


def test_what_is_no_finished_run_is_not_exported(tmp_path: Path) -> None:
    run, _ = keep(tmp_path / "store")
    out = tmp_path / "encoder"
    with pytest.raises(ValueError, match=r"cannot read .*run.json: No such file"):
        export_encoder(tmp_path / "store", out)
    (run / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.safetensors: cannot be read"):
        export_encoder(run, out)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"seed": 1}))
    with pytest.raises(
        ValueError, match=r"run.json: is not of the run that the folder is named by"
    ):
        export_encoder(run, out)
    assert not out.exists()


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return act


def other_weights(folder: Path) -> None:
    """Of another architecture, with a digest that fits."""
    import hashlib

    other = MaskedAutoencoder(replace(TINY, width=96)).encoder.state_dict()
    save_file(other, folder / "encoder.safetensors")
    digest = hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()
    edit(lambda config: config.update(sha256=digest))(folder)


def no_patch(config: dict[str, Any]) -> None:
    """A lie that is consistent: the run's architecture, its copy and the fingerprint."""
    for model in (config["architecture"], config["run"]["budget"]["model"]):
        model["patch_px"] = 0
    config["fingerprint"] = fingerprint(config["run"])


def strange_field(config: dict[str, Any]) -> None:
    for model in (config["architecture"], config["run"]["budget"]["model"]):
        model["dept"] = 4
    config["fingerprint"] = fingerprint(config["run"])


def wider(config: dict[str, Any]) -> None:
    config["architecture"]["width"] = 256


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "cannot read .*config.json: No such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json: must hold one object"),
        (edit(lambda c: c.update(format="gfmsum encoder 9")), "format 'gfmsum encoder 9' is not"),
        (edit(lambda c: c.clear()), "format None is not .*; use the gfmsum that wrote it, unknown"),
        (edit(lambda c: c.update(fingerprint="0" * 16)), "run and fingerprint do not belong"),
        (edit(lambda c: c.update(run=None)), "run and fingerprint do not belong"),
        (edit(no_patch), "config.json: architecture: "),
        (edit(strange_field), "unknown field of architecture 'dept': .* did you mean 'depth'"),
        (edit(wider), "architecture is not that of the run"),
        (edit(lambda c: c.update(architecture=None)), "architecture is not that of the run"),
        (lambda f: (f / "encoder.safetensors").unlink(), "encoder.safetensors: is missing"),
        (lambda f: (f / "encoder.safetensors").write_bytes(b"x"), "is not the file that config"),
        (edit(lambda c: c.update(sha256="")), "is not the file that config.json was written for"),
        (edit(lambda c: c.pop("sha256")), "is not the file that config.json was written for"),
        (other_weights, "is not of the architecture in config.json: .*size mismatch"),
    ],
)
def test_lies_and_damage_are_one_line(
    exported: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(exported)
    with pytest.raises(ValueError, match=message) as raised:
        load_encoder(exported)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seen", [[{}], 3, [{"sensor": "s1", "bands": [{"name": "x"}]}]])
def test_kinds_that_are_none_are_one_line(exported: Path, seen: Any) -> None:
    edit(lambda config: config.update(seen=seen))(exported)
    with pytest.raises(ValueError, match=r"config.json: seen: "):
        bands_of(exported, "s1")


def test_the_command(tmp_path: Path) -> None:
    run, mae = keep(tmp_path / "store")
    assert main([str(run), f"out={tmp_path / 'encoder'}"]) == 0
    x = torch.randn(1, 2, 32, 32)
    loaded = load_encoder(tmp_path / "encoder")
    assert torch.equal(loaded.embed(x, S1.bands), mae.encoder.embed(x, S1.bands))
    assert main([str(run)]) == main([str(run), f"out={tmp_path / 'encoder'}"]) == 2
    script = (
        "import sys\nfrom gfmsum.model.export import main\n"
        f"codes = [main(['--help']), main([{str(run)!r}, 'out={tmp_path / 'again'}'])]\n"
        "print(codes, {'torch', 'timm', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] set()"


# TerraTorch.


def test_a_backbone_gives_maps_of_patches(exported: Path) -> None:
    encoder = load_encoder(exported)
    x = torch.randn(2, 2, 32, 48)
    backbone = gfmsum_encoder(exported, sensor="s1", out_indices=(0, 2, -1))
    assert backbone.out_channels == [TINY.width] * 3 and backbone.patch_size == 4
    maps = backbone(x)
    assert [tuple(m.shape) for m in maps] == [(2, TINY.width, 8, 12)] * 3
    last = encoder.forward_features(x, S1.bands)
    assert torch.equal(maps[-1].flatten(2).mT, last)
    tokens = encoder.tokens(
        torch.zeros(2, 96, 2, 16).copy_(patches(x)), S1.bands, (8, 12), 10.0
    )  # and the first block's output before any norm
    torch.testing.assert_close(
        maps[0].flatten(2).mT, encoder.blocks[0](tokens, encoder.near(grid_places(8, 12)[None]))
    )


def patches(x: torch.Tensor) -> torch.Tensor:
    from gfmsum.model.encoder import patchify

    return patchify(x, 4)


def test_a_backbones_bands_are_named(exported: Path) -> None:
    encoder = load_encoder(exported)
    x = torch.randn(1, 2, 16, 16)
    chosen = S2.select(["B04", "B03"])
    some = gfmsum_encoder(exported, sensor="s2", bands=["B04", "B03"])
    assert torch.equal(some(x)[0].flatten(2).mT, encoder.forward_features(x, chosen))
    coarse = gfmsum_encoder(exported, sensor="s2", bands=["B04", "B03"], gsd_m=60.0)
    assert torch.equal(coarse(x)[0].flatten(2).mT, encoder.forward_features(x, chosen, 60.0))
    fresh = gfmsum_encoder(exported, sensor="s2", bands=["B04", "B03"], pretrained=False)
    assert not torch.equal(fresh(x)[0], some(x)[0])
    for options, message in (
        ({"sensor": "s9"}, "unknown sensor 's9'"),
        ({"sensor": "s2", "bands": ["B4"]}, "unknown band 'B4'"),
        ({}, "holds 2 such kinds"),
        ({"sensor": "s1", "out_indices": [4]}, r"out_indices=\[4\] must lie in \[-4, 4\)"),
        ({"sensor": "s1", "out_indices": []}, "out_indices"),
    ):
        with pytest.raises(ValueError, match=message):
            gfmsum_encoder(exported, **options)  # type: ignore[arg-type]


def test_registration_follows_terratorchs_protocol(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a double of its registry: constructors by their names, called with backbone_ options."""

    class Registry(dict[str, Callable[..., Any]]):
        def register(self, constructor: Callable[..., Any]) -> Callable[..., Any]:
            self[constructor.__name__] = constructor
            return constructor

    registry = Registry()
    double = ModuleType("terratorch.registry")
    double.TERRATORCH_BACKBONE_REGISTRY = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "terratorch", ModuleType("terratorch"))
    monkeypatch.setitem(sys.modules, "terratorch.registry", double)
    register_terratorch()
    built = registry["gfmsum_encoder"](path=str(exported), sensor="s1", pretrained=True)
    features = built(torch.randn(1, 2, 32, 32))
    assert isinstance(features, list) and len(features) == len(built.out_channels)
    assert features[0].shape == (1, built.out_channels[0], 8, 8)


def test_without_terratorch_registration_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "terratorch.registry", None)
    with pytest.raises(ValueError, match=r"TerraTorch cannot be imported: .*; pip install"):
        register_terratorch()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_terratorch_builds_and_trains_on_it(exported: Path, task: str) -> None:
    pytest.importorskip("terratorch", reason="TerraTorch needs an environment of its own")
    from terratorch.models import EncoderDecoderFactory

    register_terratorch()
    segments = task == "segmentation"
    model = EncoderDecoderFactory().build_model(
        task,
        backbone="gfmsum_encoder",
        backbone_path=str(exported),
        backbone_sensor="s2",
        backbone_bands=["B04", "B03", "B02"],
        backbone_out_indices=[0, 1, 2, 3],
        backbone_pretrained=True,
        decoder="UNetDecoder" if segments else "IdentityDecoder",
        **({"decoder_channels": [32, 16, 8, 8]} if segments else {}),
        necks=[{"name": "LearnedInterpolateToPyramidal"}]
        if segments
        else [{"name": "AggregateTokens", "pooling": "mean"}],
        num_classes=5,
    )
    x = torch.randn(2, 3, 32, 32)
    output = model(x).output
    assert output.shape == ((2, 5, 32, 32) if segments else (2, 5))
    output.sum().backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    want = load_encoder(exported).forward_features(x, S2.select(["B04", "B03", "B02"]))
    torch.testing.assert_close(model.encoder(x)[-1].flatten(2).mT, want)
