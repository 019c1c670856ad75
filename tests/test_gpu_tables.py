"""What `make gpu` found, in docs/benchmarks.md and in few lines."""

from dataclasses import replace

import torch

from pyvae.engine.fused import supports
from pyvae.studies.published import STUDIES
from scripts import module, scripts  # noqa: F401
from tiny import packed_data


class TestTables:
    GPU = "NVIDIA H200"

    def lines(self):
        common = {"gpu": self.GPU, "torch": "2.11", "commit": "abc", "time": "2026-01-02T"}
        rate = {"steps_per_second": [1900, 2000, 2100]}
        number = {"quantity": "mig-chen", "published": {"value": 0.45, "high": 0.5}}
        scores = {"study": "tc-vae", "arm": "tc-vae-6"}
        found = [
            {"stage": "ops_agree", "case": "good", "ok": True},
            {"stage": "ops_agree", "case": "bad", "ok": False, "errors": [1e-9, 0.25]},
            {"stage": "captured", "case": "late", "cut": True},
            {"stage": "rates", "case": "pyvae --precision tf32", **rate},
            {"stage": "counted", "case": "pyvae --precision tf32", "kernels": 114.2},
            {"stage": "objectives", "case": "pyvae dip-vae", "ok": False, "error": "no | such kernel"},
            *(
                {
                    "stage": "published_tables",
                    "case": f"{s}",
                    **scores,
                    "results": {"numbers": [{**number, "ours": {"value": v}}]},
                }
                for s, v in ((0, 0.40), (1, 0.44))
            ),
        ]
        return [{**common, **line} for line in found]

    def text(self, lines):
        return module("gpu_stages.markdown").gpu_tables(lines, module("report").ops_table)

    def test_what_failed_is_shown_as_failed(self):
        text = self.text(self.lines())
        assert "| every op against float64, three dtypes, forward and gradient | 1 | 1 | 0 |" in text
        assert "| captured steps against uncaptured ones, bit for bit | 0 | 0 | 1 |" in text
        assert "| ops_agree: bad | errors [1e-09, 0.25] |" in text
        assert "| objectives: pyvae dip-vae | no \\| such kernel |" in text
        assert "| pyvae dip-vae | failed | - | - |" in text
        assert "| pyvae --precision tf32 | 2,000 | 12.5 | 114 |" in text
        assert "| tc-vae, tc-vae-6, mig-chen | 0.42, 0.4 to 0.44 of 2 seeds | 0.45 to 0.5 |" in text
        assert text.endswith("NVIDIA H200; torch 2.11; commit abc, 2026-01-02; medians.")

    def test_a_card_that_only_began_has_no_table(self):
        assert self.text([{**self.lines()[0], "case": "start"}]) == ""

    def test_a_dry_run_is_no_result(self):
        dry = [{**line, "gpu": module("gpu_stages.results").DRY} for line in self.lines()]
        assert self.text(dry) == ""

    def test_a_page_has_them_when_their_files_are_there(self, tmp_path):
        results, report = module("gpu_stages.results"), module("report")
        slot = "<!-- results: gpu -->\n<!-- end -->\n"
        assert "Nothing has been measured on a GPU yet." in report.render(slot, tmp_path)
        for line in self.lines():
            results.append(tmp_path / "gpu-h200/results.jsonl", line)
        filled = report.render(slot, tmp_path)
        assert "### NVIDIA H200" in filled
        assert report.render(filled, tmp_path) == filled

    def test_the_table_of_speed_has_few_of_them_and_never_a_dry_run(self, tmp_path):
        results, report = module("gpu_stages.results"), module("report")
        for line in self.lines():
            results.append(tmp_path / "gpu-h200/results.jsonl", line)
            results.append(tmp_path / "gpu-dry/results.jsonl", {**line, "gpu": results.DRY})
        rows = [line for line in report.speed_table(tmp_path).splitlines() if line.startswith("| ")]
        assert rows[1:] == ["| NVIDIA H200: pyvae, torch's layers, tf32, the same way | 2,000 |"]

    def test_the_summary_says_what_to_do_next(self):
        text = module("gpu_stages.summary").summary(self.lines(), self.GPU, "2.11")
        assert "FAILED ops_agree: bad: errors [1e-09, 0.25]" in text
        assert "steps/s (minutes for 1.5M): --precision tf32 2,000 (12.5)" in text
        assert "next: mend what failed in ops_agree, objectives, in this order" in text
        assert "next: the next call begins with integers, fused_agree" in text
        assert len(text.splitlines()) <= 20

    def test_the_summary_is_short_whatever_happens(self):
        error = "def test():\n>   assert 1 == 2\nE   assert 1 == 2\n" * 9
        failed = [{**self.lines()[1], "case": str(i), "error": error} for i in range(30)]
        device = {
            **self.lines()[0],
            "stage": "kernels",
            "case": "tf32",
            "us": 400.0,
            "launches": 99.0,
            "kernels": [],
        }
        us = {"forward": 1.0}
        layouts = [
            {**self.lines()[0], "stage": "convolutions", "case": f"x, {layout}, {p}", "us": us}
            for layout in ("NHWC", "NCHW")
            for p in ("tf32", "bf16")
        ]
        rates = [
            {**self.lines()[0], "stage": stage, "case": case, "steps_per_second": [r, r, r]}
            for stage, case, r in (
                ("rates", "pyvae --precision bf16, captured", 1000),
                ("rates", "pyvae --no-capture", 2000),
                ("rates", "pyvae --precision fp32", 1900),
                ("compiled", "pyvae --precision tf32 --compile", 3000),
                ("popular", "popular code", 500),
            )
        ]
        lines = [*self.lines(), *failed, device, *layouts, *rates]
        text = module("gpu_stages.summary").summary(lines, self.GPU, "2.11")
        assert "FAILED ops_agree: 0: assert 1 == 2\n" in text
        assert "400: 100 us lie between launches" in text
        assert "bf16 is slower than tf32 (0.50x)" in text
        assert "torch.compile's networks are 1.50x as fast" in text
        assert "capture pays nothing" in text
        assert "convolutions in tf32: 1 us in NHWC (taken), 1 in NCHW" in text
        assert 15 < len(text.splitlines()) <= 26

    def fused(self):
        common = {**self.lines()[0], "ok": True}
        kernels = [["loss", 4.0, 2.7, 2.7, False], ["Adam", 9.9, 8.6, 2.9, True]]
        found = [
            {"stage": "fused_agree", "case": "500 steps twice"},
            {
                "stage": "fused_rates",
                "case": "fused, fp16, plain graph",
                "members": 1,
                "steps_per_second": [1, 5000, 9],
                "predicted": [7000, 10000, 13000],
            },
            {"stage": "fused_rates", "case": "torch engine, tf32", "steps_per_second": [1, 2000, 9]},
            {
                "stage": "fused_members",
                "case": "16 members, fp16, plain graph",
                "members": 16,
                "steps_per_second": [1, 20000, 9],
                "predicted": None,
            },
            {"stage": "early_launches", "case": "rule", "rule": "early launches save 0.20 us each"},
            {"stage": "fused_kernels", "case": "1 member, fp16", "us": 13.9, "kernels": kernels},
            {
                "stage": "fused_num_stages",
                "case": "loss, 1 member",
                "us": {"1": 2.0, "3": 3.0},
                "fastest": 1,
                "planned": 3,
            },
            {
                "stage": "fused_training",
                "case": "fp16, its largest gradients",
                "bits_below_the_largest_number": {"latents": 4.5, "last maps": 9.0, "nothing": None},
            },
        ]
        return [{**common, **line} for line in found]

    def test_the_fused_engine_stands_beside_its_prediction(self):
        text = self.text(self.fused())
        assert "| fused, fp16, plain graph | 5,000 | 7,000 to 13,000 | 5.0 |" in text
        assert "| torch engine, tf32 | 2,000 | - | 12.5 |" in text
        # each of 16 members gets a sixteenth of the steps
        assert "| 16 members, fp16, plain graph | 20,000 | - | 20.0 |" in text
        assert (
            "| the fused engine against float64, alone and among others, early and in graphs | 1 | 0 | 0 |"
            in text
        )

    def test_the_summary_of_the_fused_engine(self):
        text = module("gpu_stages.summary").summary(self.fused(), self.GPU, "2.11")
        assert (
            "fused, steps/s (predicted): fp16, plain graph 5,000 (7,000 to 13,000); torch engine, tf32 2,000"
            in text
        )
        assert "fused, steps/s of all members (predicted): 16 members, fp16, plain graph 20,000\n" in text
        assert "fused, 1 member, fp16: 14 us in 2 kernels; slower than predicted: Adam 8.6 for 2.9" in text
        assert "fp16: the largest gradients may double 4.5 times more" in text
        assert "next: early launches save 0.20 us each" in text
        assert "next: stages of loops: loss, 1 member: 1 instead of 3" in text


def test_a_precision_of_the_fused_engine_alone_is_of_studies_that_it_trains(monkeypatch):
    tables = module("gpu_stages.tables")
    monkeypatch.setattr(supports, "lacks", lambda device: None)
    for name, _, precision in tables.STUDIES:
        for arm in STUDIES[name].arms:
            recipe = replace(arm.recipe, precision=precision)
            told = supports.supports(recipe, packed_data(), torch.device("cpu"))
            assert precision != "fp16" or told is None, f"{name}, {arm.name}: {told}"
