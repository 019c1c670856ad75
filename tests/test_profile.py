import json
from types import SimpleNamespace

import torch

from pyvae.engine.profile import _table, profile_steps
from pyvae.engine.recipe import Recipe
from pyvae.nets import burgess
from pyvae.nets.layers import convolutions_of
from tiny import TinyData


def test_a_profile_names_what_a_step_runs(tmp_path):
    recipe = Recipe(data="tiny", batch_size=4)
    table = profile_steps(recipe, TinyData(), torch.device("cpu"), tmp_path / "profile", steps=3)
    assert (tmp_path / "profile/kernels.txt").read_text() == table
    head, *rows, total = [line.split(maxsplit=2) for line in table.splitlines()]
    assert head == ["us/step", "calls/step", "operator"]
    calls = {name: float(count) for _, count, name in rows}
    own = convolutions_of(burgess(1, 10), torch.device("cpu"), "fp32") == "native"
    if own:
        assert calls["pyvae_native::convolutions_bwd"] == 2
    else:
        assert calls["aten::convolution_backward"] == 8
    assert calls["aten::_fused_adam_"] == 1
    microseconds = [float(us) for us, _, _ in rows]
    assert microseconds == sorted(microseconds, reverse=True)
    assert abs(float(total[0]) - sum(microseconds)) < 0.1 * len(rows)
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    assert any("convolution" in event.get("name", "") for event in events)
    # the profile is of a trainer of its own
    assert not (tmp_path / "recipe.json").exists()


def test_marks_are_no_kernels():
    def event(name, kind, **more):
        return SimpleNamespace(
            name=name, device_type=SimpleNamespace(name=kind), device_time_total=6.0, **more
        )

    events = [
        event("gemm", "CUDA"),
        event("Optimizer.step#Adam.step", "CUDA", is_user_annotation=True),
        event("fill", "CUDA", is_user_annotation=False),
        event("aten::mm", "CPU"),
    ]
    table = _table(SimpleNamespace(events=lambda: events), torch.device("cuda"), 2)
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["3.0", "0.50", "gemm"],
        ["3.0", "0.50", "fill"],
        ["6.0", "1.00", "all"],
    ]
