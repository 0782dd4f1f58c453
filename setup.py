"""Packages ``aid`` and ``aid_tools`` from projects/AID."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "projects/AID/aid/__init__.py").read_text(), re.MULTILINE
)[1]

setup(
    name="aid-detectron2",
    version=VERSION,
    description="Adaptive Instance Distillation for Detectron2's object detectors",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "projects/AID"},
    packages=find_packages("projects/AID"),
    package_data={"aid_tools.report": ["page.css", "page.js"]},
    python_requires=">=3.11",
    # Detectron2 is not on the registry under its own name: tools/install_detectron2.py.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7",
        "matplotlib>=3.10",
        "numpy",
        "opencv-python-headless",
        "Pillow>=9.1",
        "pycocotools>=2.0.2",
        "PyYAML",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "dev": ["hypothesis>=6", "mypy>=2", "pytest>=9", "pytest-xdist>=3.8", "ruff>=0.12"],
        "docs": ["furo", "myst-parser>=4", "sphinx>=8", "sphinx-mathjax-offline"],
        "export": ["onnx>=1.17", "onnxruntime>=1.20"],
    },
)
