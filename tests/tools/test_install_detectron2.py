"""Detectron2 repacked from the wheel of another package, and refused files."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import PathDistribution

import pytest

import aid

FILES = {
    "LabGym/__init__.py": "raise RuntimeError('not to be installed')\n",
    "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
    "LabGym/detectron2/engine.py": "from LabGym.detectron2 import __version__\n",
    "LabGym/detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "labgym-3.1.2.dist-info/METADATA": "Name: LabGym\n",
}


@pytest.fixture
def installer(load_script):
    return load_script("tools/install_detectron2.py")


@pytest.fixture
def source(installer, tmp_path, monkeypatch):
    """A small wheel in place of the real one, with the hash that the script expects."""
    path = tmp_path / "labgym.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(installer, "SHA256", digest)
    return str(path)


def test_repacked_wheel_contains_detectron2_only(installer, source, tmp_path):
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(installer.repack(source, str(tmp_path / "out"))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = "detectron2-0.6+labgym3.1.2.dist-info"
    assert {name for name in files if not name.startswith(info)} == {
        "detectron2/__init__.py",
        "detectron2/engine.py",
        "detectron2/model_zoo/configs/Base.yaml",
    }
    assert files["detectron2/engine.py"] == b"from detectron2 import __version__\n"
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    assert (metadata["Name"], metadata["License"]) == ("detectron2", "Apache-2.0")
    requirements = metadata.get_all("Requires-Dist")
    assert "fvcore>=0.1.5,<0.1.6" in requirements and not any("torch" in r for r in requirements)
    assert b"Apache License" in files[f"{info}/licenses/LICENSE"]
    for line in files[f"{info}/RECORD"].decode().splitlines():
        name, digest, size = line.rsplit(",", 2)
        if name != f"{info}/RECORD":
            actual = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode()
            assert (digest, size) == (f"sha256={actual.rstrip('=')}", str(len(files[name])))


def test_repacking_is_deterministic(installer, source, tmp_path):
    packed = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with open(installer.repack(source, str(tmp_path / name)), "rb") as f:
            packed.append(f.read())
    assert packed[0] == packed[1]


def test_pip_installs_the_repacked_wheel(installer, source, tmp_path):
    wheel = installer.repack(source, str(tmp_path))
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), wheel], check=True)
    (info,) = target.glob("*.dist-info")
    assert PathDistribution(info).version == "0.6+labgym3.1.2"
    code = "import detectron2.engine; print(detectron2.engine.__version__)"
    actual = subprocess.run(
        [sys.executable, "-c", code], cwd=target, capture_output=True, text=True
    )
    assert actual.stdout == "0.6\n"
    assert not (target / "LabGym").exists()


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("arguments", [["--wheel"], []])
def test_only_the_file_with_the_expected_hash_is_installed(
    arguments, is_right, installer, source, monkeypatch
):
    """The hash is checked for a given file and for a downloaded one."""
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(installer.subprocess, "run", run)
    actual = iter([None, "0.6"])
    monkeypatch.setattr(installer, "find_detectron2", lambda: next(actual))
    monkeypatch.setattr(installer, "download", lambda folder: source)
    arguments = [*arguments, source] if arguments else []
    if is_right:
        installer.main(arguments)
    else:
        with open(source, "ab") as f:
            f.write(b"more")
        with pytest.raises(SystemExit, match=r"error: .*labgym.whl has sha256 .*, expected"):
            installer.main(arguments)
    assert [command[-2] for command in commands if "pip" in command] == ["install"] * is_right


def test_missing_wheel_is_reported(installer, monkeypatch):
    monkeypatch.setattr(installer, "find_detectron2", lambda: None)
    imported = subprocess.CompletedProcess([], 0)  # torch
    monkeypatch.setattr(installer.subprocess, "run", lambda *args, **options: imported)
    with pytest.raises(SystemExit, match=r"error: gone.whl cannot be read: No such file"):
        installer.main(["--wheel", "gone.whl"])


def test_working_detectron2_is_kept(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "download", lambda folder: pytest.fail("must not be reached"))
    installer.main([])
    assert capsys.readouterr().out.startswith("Detectron2 0.6 in ")


def test_broken_detectron2_is_reported(installer, monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import no_such_thing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be imported .*no_such_thing.*pip uninstall"):
        installer.main([])


def test_import_error_without_detectron2_names_the_installer(repository, tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ImportError('No module named detectron2')\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {repository!r} + '/projects/AID']\n"
    actual = subprocess.run(
        [sys.executable, "-c", code + "import aid"], capture_output=True, text=True
    )
    last = actual.stderr.strip().splitlines()[-1]
    assert "aid needs Detectron2" in last and "run `python tools/install_detectron2.py`" in last


def test_installing_the_project_installs_no_other_package(repository):
    """Any build of torch and Detectron2 satisfies the requirements of setup.py."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    actual = subprocess.run(
        [*pip, "--no-build-isolation", "--editable", ".[dev]"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    (line,) = (x for x in actual.stdout.splitlines() if x.startswith("Would install"))
    assert line.split() == ["Would", "install", f"aid-detectron2-{aid.__version__}"]
