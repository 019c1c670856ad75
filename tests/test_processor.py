"""What is said of processors of several kinds, by torch or by Linux."""

import pytest
import torch

from pyvae.base import processor

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: A Processor @ 2.20GHz
flags\t\t: fpu sse2 avx2 avx512f {flags}

processor\t: 1
model name\t: Another
flags\t\t: fpu avx512_bf16
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make this machine one of that kind, of which torch and Linux say what is given, or nothing."""

    def become(kind="x86_64", capabilities=None, cpuinfo=None):
        monkeypatch.setattr(processor.platform, "machine", lambda: kind)
        monkeypatch.setattr(processor.platform, "processor", lambda: "")
        if capabilities is None:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        else:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        if cpuinfo is not None:
            (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")

    return become


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("kind", ["x86_64", "AMD64"])
def test_either_instruction_will_do(machine, flag, kind):
    machine(kind, {"avx512_bf16": False, "amx_bf16": False} | {flag: True})
    assert processor.bfloat16() is True
    machine(kind, cpuinfo=CPUINFO.format(flags=f"{flag} aes"))
    assert processor.bfloat16() is True


def test_without_the_instructions(machine):
    machine(capabilities={"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "amx_fp16": True})
    assert processor.bfloat16() is False
    # the first processor's flags; part of a flag's name is another flag
    machine(cpuinfo=CPUINFO.format(flags="avx512_bf16x aes"))
    assert processor.bfloat16() is False


def test_torch_is_asked_before_linux(machine):
    machine(capabilities={"avx512_bf16": False}, cpuinfo=CPUINFO.format(flags="avx512_bf16"))
    assert processor.bfloat16() is False
    machine(capabilities={"architecture": "x86_64"}, cpuinfo=CPUINFO.format(flags="avx512_bf16"))
    assert processor.bfloat16() is True


def test_what_nobody_says_is_not_known(machine):
    machine()
    assert processor.bfloat16() is None
    machine("aarch64", {"bf16": True, "architecture": "aarch64"}, "processor : 0\nFeatures : fp bf16\n")
    assert processor.bfloat16() is None


def test_a_torch_that_cannot_ask_is_as_one_without(machine, monkeypatch):
    machine(cpuinfo=CPUINFO.format(flags="amx_bf16"))

    def fail():
        raise RuntimeError("cpuinfo was not initialised")

    monkeypatch.setattr(torch.cpu, "get_capabilities", fail, raising=False)
    assert processor.bfloat16() is True


def test_tiles(machine):
    machine("x86_64", {"avx512_bf16": True, "amx_bf16": True})
    assert processor.tiles()
    machine("x86_64", {"avx512_bf16": True, "amx_bf16": False}, CPUINFO.format(flags="amx_bf16"))
    assert not processor.tiles()
    machine("x86_64", cpuinfo=CPUINFO.format(flags="avx512_bf16 amx_bf16"))
    assert processor.tiles()
    machine("x86_64", cpuinfo=CPUINFO.format(flags="aes"))
    assert not processor.tiles()


def test_name(machine):
    machine(cpuinfo=CPUINFO.format(flags=""))
    assert processor.name() == "A Processor @ 2.20GHz"
    machine(capabilities={"cpu_name": "What torch calls it"})
    assert processor.name() == "What torch calls it"


def test_without_a_name_it_is_called_by_its_kind(machine):
    machine("aarch64", {"cpu_name": ""}, cpuinfo="Features : fp\n")
    assert processor.name() == "aarch64"


@pytest.mark.skipif(not processor._CPUINFO.is_file(), reason="no Linux to ask")
def test_of_this_machine_torch_and_linux_say_the_same(monkeypatch):
    said = processor.bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert processor.bfloat16() == said
