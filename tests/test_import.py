"""Side effects of ``import aid``, tested in a separate process."""

import os
import subprocess
import sys

import aid

SCRIPT = """
import logging, sys, warnings
import detectron2.engine, detectron2.model_zoo
import torch

def state():
    loggers = [x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    levels = {x.name: x.level for x in (logging.root, *loggers) if x.level}
    return levels, logging.root.handlers[:], warnings.filters[:], torch.get_num_threads()

before = state()
import aid
assert state() == before, (before, state())
assert "matplotlib" not in sys.modules
"""


def test_import_changes_no_process_wide_state():
    path = os.path.dirname(os.path.dirname(aid.__file__))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
