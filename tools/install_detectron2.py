#!/usr/bin/env python3
"""Install Detectron2 in this Python environment without compiling it.

    python tools/install_detectron2.py

A working Detectron2 is kept: to use upstream's build with compiled operators, install it first
(see its INSTALL.md). The Python package index has no Detectron2 under its own name, but the wheel
of LabGym 3.1.2 contains an unchanged copy of its Python part (main branch after v0.6, Apache-2.0)
as LabGym.detectron2. This script downloads that wheel, checks its hash, repacks Detectron2 with its
original import names into a separate wheel, and installs that with pip. LabGym is not installed.
"""

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile

SOURCE = "LabGym==3.1.2"
SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
VERSION = "0.6+labgym3.1.2"
PACKAGE, VENDORED = "detectron2/", "LabGym/detectron2/"
LICENSE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "LICENSE")

# Requirements of Detectron2's setup.py without black, which only LazyConfig.to_py needs, plus numpy
# and a setuptools with pkg_resources for its model zoo. As there, the user installs torch.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "numpy",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<=0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<81",
)
METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: Detectron2 (pure Python part), repacked from the wheel of LabGym 3.1.2
Author: FAIR
License: Apache-2.0
Classifier: License :: OSI Approved :: Apache Software License
License-File: LICENSE
Requires-Python: >=3.7
{"".join(f"Requires-Dist: {requirement}{chr(10)}" for requirement in REQUIREMENTS)}
The Python part of Detectron2, main branch after v0.6, as carried by the wheel of LabGym 3.1.2.
Changed in repacking: imports of LabGym.detectron2 are written back to detectron2.
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: install_detectron2
Root-Is-Purelib: true
Tag: py3-none-any
"""


class InstallError(Exception):
    """Failed installation; the message is one line: what is wrong and what to do."""


def find_detectron2() -> str | None:
    """Version and path of the installed Detectron2; None if there is none.

    Raises:
        InstallError: Detectron2 is installed, but its import fails.
    """
    probe = (
        "import importlib.util, sys\n"
        "spec = importlib.util.find_spec('detectron2')\n"
        "if spec is None: sys.exit(3)\n"
        "import detectron2, detectron2.engine, detectron2.model_zoo\n"
        "print(detectron2.__version__, 'in', list(detectron2.__path__)[0])\n"
    )
    process = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if process.returncode == 0:
        return process.stdout.strip()
    if process.returncode == 3:
        return None
    reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise InstallError(
        f"a Detectron2 is installed but cannot be imported ({reason}): repair it, or run "
        f"`{sys.executable} -m pip uninstall detectron2` and run this script again"
    )


def download(folder: str) -> str:
    """Download the source wheel into ``folder``; returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # LabGym requires Python < 3.11, its copy of Detectron2 does not.
    command += ["--python-version", "3.10", "--dest", folder, SOURCE]
    if subprocess.run(command).returncode:
        raise InstallError(
            f"pip could not download {SOURCE}: check the network, then run this again"
        )
    (name,) = os.listdir(folder)
    return os.path.join(folder, name)


def check_hash(path: str) -> None:
    """Check the hash of the source wheel.

    Raises:
        InstallError: the file cannot be read, or is not the expected wheel.
    """
    try:
        with open(path, "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
    except OSError as error:
        raise InstallError(f"{path} cannot be read: {error.strerror}") from error
    if digest != SHA256:
        raise InstallError(
            f"{path} has sha256 {digest}, expected {SHA256}: the file is truncated or another one; "
            "nothing was installed"
        )


def repack(source: str, folder: str) -> str:
    """Build the wheel of Detectron2 from that of LabGym, reproducibly.

    Args:
        source: path of LabGym's wheel.
        folder: output folder.

    Returns:
        Path of the new wheel.
    """
    info = f"detectron2-{VERSION}.dist-info"
    files = {}
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            if name.startswith(VENDORED) and not name.endswith("/"):
                content = archive.read(name).replace(b"LabGym.detectron2", b"detectron2")
                files[PACKAGE + name[len(VENDORED) :]] = content
    with open(LICENSE, "rb") as f:
        files[f"{info}/licenses/LICENSE"] = f.read()
    files[f"{info}/METADATA"] = METADATA.encode()
    files[f"{info}/WHEEL"] = WHEEL.encode()
    record = "".join(f"{name},{_digest(files[name])},{len(files[name])}\n" for name in files)
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    path = os.path.join(folder, f"detectron2-{VERSION}-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # with a fixed date
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def install(source: str | None) -> None:
    """Install Detectron2 from the wheel ``source``, which is downloaded if it is None.

    Raises:
        InstallError: the installation failed.
    """
    installed = find_detectron2()
    if installed:
        print(f"Detectron2 {installed} works: nothing to do")
        return
    torch = subprocess.run([sys.executable, "-c", "import torch, torchvision"], capture_output=True)
    if torch.returncode:
        raise InstallError(
            "torch and torchvision cannot be imported: install them first, for example with "
            f"`{sys.executable} -m pip install -r requirements.txt`"
        )
    with tempfile.TemporaryDirectory() as downloads, tempfile.TemporaryDirectory() as wheels:
        source = source or download(downloads)
        check_hash(source)
        wheel = repack(source, wheels)
        if subprocess.run([sys.executable, "-m", "pip", "install", wheel]).returncode:
            raise InstallError(f"pip could not install {os.path.basename(wheel)}: see above")
    installed = find_detectron2()
    if not installed:
        raise InstallError("Detectron2 was installed but cannot be found: check PYTHONPATH")
    print(f"Detectron2 {installed} installed")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", help="the wheel of LabGym 3.1.2, where it cannot be downloaded from here"
    )
    args = parser.parse_args(argv)
    try:
        install(args.wheel)
    except InstallError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
