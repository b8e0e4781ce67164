import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile
import torch
from transformers import (
    AutoModel,
    HubertConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
)

from gmp_utils.figures import style
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import hardware
from gmp_utils.runs.files import describe_files, read_json, write_json
from gmp_utils.runs.stage import _digest, make_stage
from gmp_utils.stages import finetune, generate_gmps, retrain, train_multitask
from gmp_utils.training.trainer import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]

TINY = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
    conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
)  # fmt: skip
CONFIGS = {
    config.model_type: config
    for config in (HubertConfig, Wav2Vec2Config, WavLMConfig, UniSpeechConfig, UniSpeechSatConfig)
}


def save_encoder(folder: Path, kind: str, norm: str) -> Path:
    """A tiny encoder with random weights. The CNN and layers of large ones are normalized differently."""
    config = CONFIGS[kind](**TINY, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


EMODB = ROOT / "gmp_utils" / "data" / "corpora" / "emodb"  # 535 recordings
needs_browser = pytest.mark.skipif(style.browser() is None, reason="no Chromium is installed")


@pytest.fixture(scope="session", autouse=True)
def float32():
    """Compute in float32, like the references. Notebooks and processes that tests start do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A HuBERT with group norm and random weights, saved like the published one."""
    return save_encoder(tmp_path_factory.mktemp("tiny"), "hubert", "group")


def truncate(path: Path) -> None:
    """Cut a file to half its size."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture(scope="session")
def tiny_wav2vec2(tmp_path_factory) -> Path:
    """A wav2vec 2.0 with random weights and pre-training heads, as on the hub."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    heads = {"codevector_dim": 16, "proj_codevector_dim": 12, "num_negatives": 20}
    heads |= {"num_codevectors_per_group": 3, "feat_quantizer_dropout": 0.0}  # codes often repeat
    Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture
def noise_corpus(tmp_path):
    """A prepared corpus of noise: 3 sessions of a woman and a man, 4 emotions, 72 utterances."""
    return write_noise_corpus(tmp_path / "run")


def write_noise_corpus(
    run: Path, *, genders: bool = True, test_genders: bool = True, ratings: Sequence[str] = (),
    test_ratings: float = 0.0, **rules,
) -> Path:  # fmt: skip
    from gmp_utils.data.protocol import make_protocol
    from gmp_utils.data.ragged import Ragged

    rng = np.random.default_rng(0)
    rows, waves = [], []
    for session in "123":
        for gender in ("female", "male"):
            for number in range(12):
                emotion = ("angry", "happy", "neutral", "sad")[number % 4]
                samples = rng.normal(0, 2000, rng.integers(4000, 9000))
                waves.append(samples.astype(np.int16))
                speaker, seconds = f"{session}{gender[0]}", len(samples) / 16000
                rows.append((f"{speaker}{number}", speaker, gender, emotion, session, seconds))
    waves.append(np.zeros(300, np.int16))  # decoded, but excluded: too short for a frame
    columns = ["utterance", "speaker", "gender", "emotion", "session", "duration"]
    manifest = pd.DataFrame(rows, columns=columns)
    manifest = manifest.assign(corpus="noise", digest=manifest.utterance, path="")
    for rating in ratings:
        manifest[rating] = np.random.default_rng(len(rating)).uniform(1, 5, len(manifest))
        tested = manifest.session == "1"
        manifest[rating] = manifest[rating].mask(tested & (test_ratings > 0), test_ratings)
    if not genders:
        manifest["gender"] = None
    if not test_genders:
        manifest["gender"] = manifest.gender.mask(manifest.session == "1", None)
    if rules.get("fold_by") == "cross-corpus":
        tested = manifest.session == "3"
        manifest["corpus"] = np.where(tested, "other", "noise")
        manifest["split"] = np.where(tested, "test", "train")
    run.mkdir(parents=True)

    def record(folder: Path) -> None:
        lengths = dict(zip([*manifest.utterance, "excluded"], map(len, waves)))
        store = Ragged.create(folder / "waveforms", lengths, np.int16)
        store.values[:] = np.concatenate(waves)
        store.flush()

    protocol = asdict(make_protocol(manifest, **rules))

    def prepare(folder: Path) -> None:
        manifest.to_parquet(folder / "manifest.parquet", index=False)
        write_json(folder / "protocol.json", protocol)

    made = {"parameters": {}, "module": "gmp_utils.runs.paths"}
    recordings = make_stage(run / "recordings", record, **made)
    make_stage(run / "01_prepare_data", prepare, stages=[recordings], protocol=protocol, **made)
    return run


def seal_again(stage: Path) -> None:
    """Record the current files of a stage, after a test has changed them."""
    provenance, described = read_json(stage / "provenance.json"), describe_files(stage)
    del provenance["sha256"]
    provenance["files"] = {name: described[name] for name in provenance["files"]}
    write_json(stage / "provenance.json", provenance | {"sha256": _digest(provenance)})


QUICK = TrainingConfig(1e-3, epochs=2, batch_seconds=10, batch_size=8)
SMALL = HeadConfig(lstm_size=8, projection_size=8)
CLASSIFIER = vars(SMALL) | {"emotions": ["a", "b", "c"], "emotion_weights": []}
MULTITASK = CLASSIFIER | {"alpha": 0.9, "frame_weight": 0.0}
FINETUNED = CLASSIFIER | {"loss": "ams", "scale": 30.0, "margin": 0.2}
PREDICTOR = {"stream_hidden_size": 8, "loss_on": "masked", "activation": "relu"}


ONCE = TrainingConfig(1e-3, epochs=1, batch_seconds=10, batch_size=8)


def multitask(run: Path, encoder: Path, schedule=QUICK) -> Path:
    """Train the multi-task model of fold 1."""
    return train_multitask.train_multitask(str(run), 1, str(encoder), schedule, network=SMALL)


def classifier(
    run: Path, encoder: Path, loss="ce", schedule=ONCE, *, fold=1, network=SMALL
) -> Path:
    """Train a classifier that starts from the encoder."""
    settings = {"finetune_from": "encoder", "network": network}
    return finetune.finetune(str(run), fold, str(encoder), loss, schedule, **settings)


def run_series(run: Path, encoder: Path, schedule=QUICK, max_steps=4, scales=(4, 8)) -> Path:
    """Make every stage of fold 1, and train with every loss."""
    where = (str(run), 1, str(encoder))
    multitask(run, encoder, schedule)
    generate_gmps.generate_gmps(str(run), 1, scales=scales)
    retraining = TrainingConfig(1e-3, max_steps=max_steps, batch_seconds=10)
    retrain.retrain(*where, retraining, stream_hidden_size=8)
    for loss in ("ce", "ams", "ce-then-ams"):
        finetune.finetune(*where, loss, schedule, network=SMALL)
    classifier(run, encoder, "ams", schedule)
    return run / "fold1"


VARIABLES = {
    "NAME", "CORPUS", "CORPUS_DIR", "TEST_CORPUS", "TEST_CORPUS_DIR", "ENCODER", "FOLDS", "SEEDS",
    "FINETUNE_FROM", "PRESET", "RECIPE", "RUN", "REPORT_TO", "CORES", "GPUS", "ARGS",
}  # fmt: skip
CLEAN = {name: value for name, value in os.environ.items() if name not in VARIABLES}


def python_path(*folders: Path) -> dict[str, str]:
    """An environment in which Python searches some folders for modules first."""
    paths = (*map(str, folders), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(*arguments, **options) -> subprocess.CompletedProcess:
    """Run Python with some arguments."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 1800} | options
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


def make(*arguments, timeout=3600, **environment):
    """Run `make` in the checkout, without settings of the caller's environment."""
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=CLEAN | environment, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


def succeeded(done):
    """Output of a process, which must have ended with status 0."""
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def cli(command: str, settings: dict, *others: str, environment=(), **options) -> subprocess.Popen:
    """Start `python -m gmp_utils` with fields of experiments.Settings, and without a browser for pictures."""
    arguments = [settings["experiment"]] if "experiment" in settings else []
    for name, value in settings.items():
        if name != "experiment":
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return subprocess.Popen(
        [sys.executable, "-m", "gmp_utils", command, *arguments, *others],
        cwd=ROOT, env=CLEAN | {"BROWSER_PATH": ""} | dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def workflow(settings: dict, *others: str, **options) -> subprocess.Popen:
    """Start a run, or an experiment if the settings name one, on two cores."""
    command = "experiment" if "experiment" in settings else "run"
    return cli(command, settings, "--cores", "2", "--gpus", "0", *others, **options)


STOPPER = """
import os, re, signal, sys, threading

MOMENT, DELAY, FLAG = %r
waiting = ["ipykernel_launcher" in " ".join(sys.orig_argv)]

def stop():
    open(FLAG, "w").write(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)

def watch(event, arguments):
    written = event == "os.rename" or event == "open" and set("wax+") & set(str(arguments[1]))
    if waiting[0] and written and re.search(MOMENT, str(arguments[0])):
        waiting[0] = False
        threading.Timer(DELAY, stop).start() if DELAY else stop()

sys.addaudithook(watch)
"""


def kill_when(
    settings, moment: str, victim: str, folder: Path, delay: float = 0.0, gpus: int = 0
) -> None:
    """Start the workflow, stop a kernel at a moment, and kill it or the processes that started it.

    The moment is a regular expression for the file that the kernel is about to write or rename. The
    victim is "all" processes, "papermill", its "kernel", or "snakemake" alone.
    """
    flag, site = folder / "stopped", folder / "site"
    site.mkdir(exist_ok=True)
    flag.unlink(missing_ok=True)
    (site / "sitecustomize.py").write_text(STOPPER % ((moment, delay, str(flag)),))
    environment = python_path(site)
    process = workflow(
        settings, "--gpus", str(gpus), environment=environment, start_new_session=True
    )
    while not (flag.is_file() and flag.read_text()):
        assert process.poll() is None, f"{moment} never came: {process.communicate()[0][-4000:]}"
        time.sleep(0.02)
    kernel, started = psutil.Process(int(flag.read_text())), psutil.Process(process.pid)
    victims = {
        "all": [started, *started.children(recursive=True)],
        "snakemake": started.children(),
        "papermill": [kernel.parent()],
        "kernel": [kernel],
    }
    for process_to_kill in victims[victim]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process_to_kill.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        kernel.resume()
    output = process.communicate()[0]
    assert process.returncode, output[-4000:]


def finished(process) -> str:
    """Wait until a process ends with status 0; returns what it printed."""
    output = process.communicate(timeout=3600)[0]
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="session")
def smoke(tiny_encoder, tmp_path_factory):
    """Settings of the smoke experiment in a given folder: one seed, 8 notebooks, 72 noises, no pictures."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    rows = []
    for number in range(72):
        name, emotion = f"{number}.wav", ("angry", "happy", "neutral", "sad")[number // 6 % 4]
        soundfile.write(folder / name, rng.normal(0, 0.1, 8000), 16000)
        gender = ("female", "male")[number % 2]
        rows.append({"path": name, "speaker": number % 6, "gender": gender, "emotion": emotion})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    (folder / "preset.yaml").write_text("n_folds: 3\nscales: [4, 8]\n")
    settings = {
        "experiment": "smoke", "corpus": "table", "corpus_dir": str(folder / "table.csv"),
        "encoder": str(tiny_encoder), "seeds": [0], "preset": str(folder / "preset.yaml"),
    }  # fmt: skip
    return lambda run: settings | {"run_dir": str(run)}


@pytest.fixture(scope="session")
def undisturbed(smoke, tmp_path_factory):
    """The smoke experiment without any interruption."""
    run = tmp_path_factory.mktemp("undisturbed") / "smoke"
    finished(workflow(smoke(run)))
    return run
