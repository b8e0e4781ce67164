"""The package outside a checkout: its data are in the wheel, and recordings can be recognized."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
from conftest import CLEAN, ROOT, classifier, python

from gmp_utils.stages import publish


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, installed into a separate folder."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # setuptools builds in place
    names = ["pyproject.toml", "README.md", "LICENSE", "gmp_utils"]
    source.mkdir()
    subprocess.run(["cp", "-r", *names, source], cwd=ROOT, check=True)
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(wheel, check=True)
    (path,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, path], check=True)
    return path, target


def run(target, folder, *arguments):
    """Run Python with the installed package, outside a checkout."""
    return python(*arguments, cwd=folder, env=CLEAN | {"PYTHONPATH": str(target)})


def test_the_wheel_holds_all_data_and_nothing_else(installed):
    files = zipfile.ZipFile(installed[0]).namelist()
    for name in ("model.safetensors", "config.json", "README.md", "training_recordings.txt"):
        assert f"gmp_utils/models/embedded/{name}" in files
    emodb = [name for name in files if name.startswith("gmp_utils/data/corpora/emodb/")]
    assert len(emodb) == 535 + 1 and f"{emodb[0].rsplit('/', 1)[0]}/README.md" in emodb
    rooms = ROOT / "gmp_utils"
    for path in [*rooms.rglob("*.js"), *rooms.rglob("stages/*.md"), *rooms.rglob("*.py")]:
        assert str(path.relative_to(ROOT)) in files
    assert {name.split("/")[0].split("-")[0] for name in files} == {"gmp_utils"}


def test_recordings_are_recognized_with_a_published_model(
    installed, noise_corpus, tiny_encoder, tmp_path
):
    model = publish.publish(classifier(noise_corpus, tiny_encoder)) / "model"
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "file.wav", noise, 16000)
    done = run(installed[1], tmp_path, "-m", "gmp_utils", "recognize", "file.wav", "--model", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("file,start,end,emotion")
    code = "import gmp_utils; print(gmp_utils.__file__)"
    assert run(installed[1], tmp_path, "-c", code).stdout.startswith(str(installed[1]))


def test_the_explorer_imports_and_runs_name_what_they_need(installed, tmp_path):
    code = (
        "from gmp_utils.figures.explore_layers import explore; from gmp_utils.runs import weights"
    )
    done = run(installed[1], tmp_path, "-c", f"{code}; print(weights.n_layers('embedded'))")
    assert done.stdout == "8\n", done.stderr
    done = run(installed[1], tmp_path, "-m", "gmp_utils", "run")
    assert done.returncode == 1
    assert "run this in a checkout of the project" in done.stderr
