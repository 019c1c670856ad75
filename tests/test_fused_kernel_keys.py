"""Keys of the fused engine's kernels in Triton's cache, which other processes must find."""

import json
import os
import subprocess
import sys

import pytest

from scripts import ROOT

pytest.importorskip("triton")
KERNELS = ["conv_pair.conv_down_kernel", "conv_ends.loss_kernel", "latents.latents_kernel"]
KERNELS += ["flat_adam.flat_adam_kernel"]
CODE = """
import json, sys
from importlib import import_module
from pyvae.engine.fused.kernels import kernel_of
before, *names = sys.argv[1:]
if before:
    getattr(import_module(f"pyvae.kernels.{before.split('.')[0]}"), before.split('.')[1]).cache_key
print(json.dumps({name: kernel_of(*name.split('.')).cache_key for name in names}))
"""


def keys(names, before=""):
    """In a process that asks for kernels in this order, after one of an op."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", CODE, before, *names]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def test_they_do_not_depend_on_what_a_process_has_launched_before():
    in_order = keys(KERNELS)
    assert len(set(in_order.values())) == len(KERNELS)
    # the noise is that of an op, too
    assert keys(KERNELS[::-1], before="reparameterize_kl.reparameterize_kl_fwd_kernel") == in_order
