"""Which engine trains a recipe, and what is said of one that cannot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyvae.cli import doctor, main
from pyvae.engine import batches
from pyvae.engine.fused import supports as module
from pyvae.engine.fused.launch import Options
from pyvae.engine.fused.supports import PROVEN, options_on, settled, supports
from pyvae.engine.recipe import Recipe, differences
from pyvae.engine.training import training
from pyvae.errors import RecipeError
from pyvae.objectives import IWAE, InfoGAN, InfoWGANGP
from scripts import module as module_of
from scripts import scripts  # noqa: F401
from tiny import GreyData, TinyData, packed_data

CPU = torch.device("cpu")
FUSED = Recipe(engine="fused", precision="fp16")


@pytest.fixture
def data():
    return packed_data()


REFUSED = {
    "precision fp32 is torch's": {"precision": "fp32"},
    "importance-weighted": {"objective": IWAE()},
    "a generator and its critic": {"objective": InfoGAN(), "architecture": "kim", "latents": 5},
    "generator and its critic have": {"objective": InfoWGANGP(), "architecture": "kim", "latents": 5},
    "code factors: it knows encoder alone": {"code": "factors", "latents": 3},
    "likelihood gaussian: it knows bernoulli alone": {"likelihood": "gaussian"},
    "optimizer adagrad": {"optimizer": "adagrad"},
    "binarise stochastic": {"binarise": "stochastic"},
    "batch_size 1,025": {"batch_size": 1025},
    "latents 65: it takes 64 at most": {"latents": 65},
    "architecture mlp: it has no convolutions": {"architecture": "mlp"},
    "architecture rainforth": {"architecture": "rainforth"},
}


@pytest.mark.parametrize(("reason", "changes"), REFUSED.items(), ids=REFUSED)
def test_what_it_cannot_train_it_says(reason, changes, data, triton_backend):
    recipe = replace(FUSED, **changes)
    assert reason in supports(recipe, data, CPU)
    with pytest.raises(RecipeError, match=rf"^engine fused: .*{reason}.*: .*--engine torch"):
        settled(recipe, data, CPU)


@pytest.mark.parametrize("architecture", ["burgess", "beta-vae-h", "kim", "kim-256", "locatello"])
@pytest.mark.parametrize("kind", ["bits", "bytes", "colour"])
def test_what_it_can(architecture, kind, data, triton_backend):
    if kind != "bits":
        data = TinyData(channels=3 if kind == "colour" else 1)
        data.pixels = (data.images(torch.arange(len(data))) * 255).to(torch.uint8)
    assert supports(replace(FUSED, architecture=architecture), data, CPU) is None


def test_images_must_be_in_memory_as_bits_or_bytes(data, triton_backend, monkeypatch):
    assert "neither bits nor bytes" in supports(FUSED, TinyData(), CPU)
    monkeypatch.setattr(module, "fitting", lambda dataset, device: None)
    assert "do not fit into the device's memory" in supports(FUSED, data, CPU)
    assert batches.fitting(data, CPU) is data.bits


def test_a_device_without_the_kernels_says_so(data, monkeypatch):
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    assert supports(FUSED, data, CPU) == "it needs an NVIDIA GPU and Triton"
    assert "cpu: no (it needs an NVIDIA GPU and Triton)" in doctor.describe()
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    assert "asks for plain torch" in supports(FUSED, data, CPU)


def test_an_old_gpu_says_so(data, monkeypatch):
    monkeypatch.setattr(module, "takes_triton", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0 or newer" in supports(FUSED, data, torch.device("cuda"))


def test_auto_is_torch_where_nothing_has_been_measured(data, triton_backend, monkeypatch):
    auto = Recipe(precision="tf32")
    assert settled(auto, data, CPU).engine == "torch"
    monkeypatch.setattr(module, "supports", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    gpu = torch.device("cuda")
    assert settled(auto, data, gpu).engine == "torch"
    assert options_on(gpu, "tf32") == options_on(CPU, "tf32") == Options()
    monkeypatch.setattr(module, "PROVEN", {"a card": {"tf32": Options(pdl=True), "fp16": Options()}})
    assert options_on(gpu, "tf32") == Options(pdl=True)
    assert options_on(gpu, "fp16") == options_on(gpu, "bf16") == Options()
    assert settled(auto, data, gpu).engine == "fused"
    assert settled(replace(auto, precision="bf16"), data, gpu).engine == "torch"
    assert settled(auto, data, gpu, compile=True).engine == "torch"
    assert settled(auto, data, gpu, begun="torch").engine == "torch"
    assert settled(replace(auto, engine="torch"), data, gpu).engine == "torch"


def test_the_doctor_names_the_precisions_that_auto_takes(monkeypatch):
    monkeypatch.setattr(module, "lacks", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    gpu = torch.device("cuda")
    assert "for precision fp16 alone: nothing has been measured on a card" in doctor._engine(gpu)
    monkeypatch.setattr(module, "PROVEN", {"a card": {"fp16": Options(), "bf16": Options()}})
    assert doctor._engine(gpu) == (
        "yes, and --engine auto takes it for precision fp16 and bf16: measured on a card"
    )


def test_auto_says_once_why_it_is_torch_on_a_card_that_is_measured(data, monkeypatch, caplog):
    monkeypatch.setattr(module, "PROVEN", {"a card": {"tf32": Options()}})
    monkeypatch.setattr(module, "lacks", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    caplog.set_level("INFO", "pyvae")
    for _ in range(2):
        assert settled(Recipe(), data, torch.device("cuda")).engine == "torch"
    told = [r.getMessage() for r in caplog.records]
    assert told == ["engine torch, since the fused one cannot train this: precision fp32 is torch's"]


def test_auto_goes_on_with_what_has_begun(data, triton_backend):
    assert settled(Recipe(precision="tf32"), data, CPU, begun="fused").engine == "fused"


@pytest.mark.parametrize("engine", ["auto", "fused"])
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_cannot_be_gone_on_with_here_is_not_sent_to_torch(engine, precision, data, monkeypatch):
    """Which would refuse a run of the fused engine."""
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    begun = Recipe(engine=engine, precision=precision)
    with pytest.raises(
        RecipeError, match=r"^the fused engine began this run, .*: it needs an NVIDIA GPU and Triton$"
    ):
        settled(begun, data, CPU, begun="fused")


def bears_out(lines, card, operands, options):
    """Whether the newest results of a card say that the fused engine agreed there, with these options, and was faster
    than torch's; what other options did, or had no time to do, does not matter."""
    results = module_of("gpu_stages.results")
    mine = results.newest(line for line in lines if line.get("gpu") == card)
    boxes = f"{operands}, descriptors"
    cases = [
        f"a step against float64, {operands}",
        f"50 steps of a member alone and of the last of 4, {operands}",
        "500 steps twice",
        "64 steps in graphs and one by one",
        *[f"a step against float64, {boxes}"] * options.descriptors,
        *[f"500 steps, {operands}, PDL, and plain"] * options.pdl,
        *[f"500 steps, {operands}, PDL + side branch, and plain"] * options.side_branch,
    ]
    agreed = [mine.get(("fused_agree", case)) for case in cases]
    faster = [("fused_rates", f"fused, {operands}, plain graph", f"torch engine, {RIVALS[operands]}")]
    if options.descriptors:
        faster.append(("fused_members", f"16 members, {boxes}", f"16 members, {operands}, plain graph"))
    early = "PDL + side branch" if options.side_branch else "PDL" if options.pdl else ""
    if early:
        faster.append(("fused_rates", f"fused, {operands}, {early}", f"fused, {operands}, plain graph"))
    rates = [
        [mine.get((stage, case), {}).get("steps_per_second") for case in cases] for stage, *cases in faster
    ]
    return all(line and results.is_good(line) and line["ok"] for line in agreed) and all(
        one and two and one[1] > two[1] for one, two in rates
    )


RIVALS = {"fp16": "tf32", "bf16": "bf16", "tf32": "tf32"}
"""Of torch's engine, which has no fp16."""


def test_cards_that_auto_takes_have_results():
    """A name may stand there when results of `make gpu` say of that card that this engine agreed and was faster."""
    held = module_of("gpu_stages.results").known(Path(__file__).resolve().parents[1] / "benchmarks/results")
    assert PROVEN
    for card, proven in PROVEN.items():
        assert [o for o, options in proven.items() if not bears_out(held, card, o, options)] == []
    # these agree, and are not known to be faster
    assert not bears_out(held, "NVIDIA H100 80GB HBM3", "tf32", Options(descriptors=True))
    assert not bears_out(held, "NVIDIA H100 80GB HBM3", "fp16", Options(pdl=True))
    assert not bears_out(held, "NVIDIA H100 80GB HBM3", "fp16", Options(pdl=True, side_branch=True))
    assert not bears_out(held, "NVIDIA A100-SXM4-80GB", "fp16", Options())


def test_a_card_is_borne_out_by_its_own_results():
    steps = {
        case: {"stage": "fused_agree", "ok": True}
        for case in (
            "a step against float64, fp16",
            "50 steps of a member alone and of the last of 4, fp16",
            "500 steps twice",
            "64 steps in graphs and one by one",
        )
    }
    rates = {
        "fused, fp16, plain graph": {"stage": "fused_rates", "steps_per_second": [1, 8, 9]},
        "torch engine, tf32": {"stage": "fused_rates", "steps_per_second": [1, 7, 9]},
    }
    lines = [{"case": case, "gpu": "a card", "time": "1", **said} for case, said in (steps | rates).items()]
    assert bears_out(lines, "a card", "fp16", Options())
    assert bears_out(
        [*lines, {**lines[0], "case": "500 steps, PDL", "cut": True}], "a card", "fp16", Options()
    )
    assert not bears_out(lines, "another", "fp16", Options())
    assert not bears_out(lines, "a card", "bf16", Options())
    for option in Options._fields:
        assert not bears_out(lines, "a card", "fp16", Options(**{option: True}))
    for at in range(len(lines)):
        assert not bears_out(lines[:at] + lines[at + 1 :], "a card", "fp16", Options())
    for at in range(len(steps)):
        for wrong in ({"ok": False}, {"cut": True}):
            assert not bears_out([*lines, {**lines[at], **wrong}], "a card", "fp16", Options())
    slow = {**lines[-2], "steps_per_second": [7, 7, 9]}
    assert not bears_out([*lines, slow], "a card", "fp16", Options())


def test_fp16_is_of_the_fused_engine_alone(data, triton_backend, monkeypatch):
    with pytest.raises(RecipeError, match=r"precision fp16: the torch engine has none"):
        Recipe(precision="fp16", engine="torch")
    assert settled(Recipe(precision="fp16"), data, CPU).engine == "fused"
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    with pytest.raises(RecipeError, match=r"^precision fp16: it needs an NVIDIA GPU.*--precision tf32"):
        training(Recipe(precision="fp16"), data, CPU)


def test_compile_is_of_torch(data, triton_backend):
    with pytest.raises(RecipeError, match=r"engine fused: --compile is of the torch engine"):
        training(FUSED, data, CPU, compile=True)


def test_recipes_of_earlier_versions_have_no_engine():
    values = Recipe().to_json()
    del values["engine"]
    assert Recipe.from_json(values) == Recipe()


def test_auto_differs_from_no_engine_and_engines_from_each_other():
    auto, torch_, fused = (Recipe(engine=engine) for engine in ("auto", "torch", "fused"))
    assert differences(auto, fused) == differences(torch_, auto) == []
    assert differences(torch_, fused) == ["engine is fused there and torch here"]


@pytest.mark.parametrize(
    "options", [["--engine", "fused", "--precision", "fp16"], ["--precision", "fp16"], ["--engine", "fused"]]
)
def test_a_cpu_refuses_in_one_line_and_leaves_nothing(options, tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    out = tmp_path / "run"
    command = ["pyvae", "train", "beta-vae", "--steps", "1", "--out", str(out), "--device", "cpu", *options]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr("pyvae.data.load", lambda path, **options: GreyImages())
    with pytest.raises(SystemExit, match=r"^pyvae: error: [^\n]*--engine torch[^\n]*$"):
        main()
    assert not out.exists()


class GreyImages(GreyData):
    """Of the side that networks take."""

    def __init__(self):
        super().__init__()
        self.image_shape = (1, 64, 64)
        self.pixels = torch.zeros(40, 1, 64, 64, dtype=torch.uint8)


def test_a_recipe_that_names_an_engine_keeps_it(tmp_path):
    assert json.loads(json.dumps(FUSED.to_json()))["engine"] == "fused"
    assert Recipe.from_json(FUSED.to_json()) == FUSED
