"""Two processes give the results of one: batches, gradients, metrics and files."""

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MULTITASK, PREDICTOR, SMALL, classifier, python_path, write_noise_corpus
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from gmp_utils import GmpError
from gmp_utils.data.ragged import Ragged
from gmp_utils.models import classifiers, masked_prediction, regression
from gmp_utils.stages import finetune
from gmp_utils.training.batching import DurationBatchSampler, Masking, Utterances
from gmp_utils.training.trainer import DurationTrainer, TrainingConfig, launch, train

RATER = {
    "attributes": ["valence", "arousal"], "interpreter": "transformer", "fixed_embeddings": False,
    "n_speakers": 0, "speaker_position": "output", "label_mean": [0.0, 0.0], "label_std": [1.0, 1.0],
}  # fmt: skip


@pytest.fixture
def cpu_processes(monkeypatch, tmp_path_factory):
    """Use float32 and gloo on any hardware, and let the processes find this module."""
    site = tmp_path_factory.mktemp("site")
    patch = "from gmp_utils.runs import hardware\n\nhardware.bfloat16 = lambda: False\n"
    (site / "sitecustomize.py").write_text(patch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(*python_path(site, Path(__file__).parent).popitem())


class Rater(regression.AttributeModel):
    """A model without dropout, which differs between processes."""

    def _build_heads(self, config):
        super()._build_heads(config)
        for module in self.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0


def leave_gradients(cases: dict, folder: Path) -> None:
    """Write the gradients of each case's only batch, as `train` computes them, and this process's share."""
    for name, (load, source, dataset) in cases.items():
        options = {"use_cpu": True, "remove_unused_columns": False, "report_to": "none"}
        arguments, config = TrainingArguments(str(folder), **options), TrainingConfig(epochs=1)
        trainer = DurationTrainer(load(source), arguments, train_dataset=dataset, config=config)
        model = trainer.accelerator.prepare(trainer._wrap_model(trainer.model))
        (batch,) = trainer.get_train_dataloader()
        trainer.compute_loss(model.train(), batch).backward()
        kept = {"lengths": batch["lengths"], "masked": batch.get("mask", torch.zeros(1)).sum()}
        for parameter, value in trainer.model.named_parameters():
            if value.grad is not None:
                kept[parameter] = value.grad.clone()
        save_file(kept, folder / f"{name}{arguments.process_index}.safetensors")


def store(stem, lengths, dtype, values):
    names = [f"u{index}" for index in range(len(lengths))]
    ragged = Ragged.create(stem, dict(zip(names, lengths)), dtype, shape=values.shape[1:])
    ragged.values[:] = values
    ragged.values.flush()
    return ragged


def test_gradients_of_a_batch_are_those_of_one_process(tmp_path, tiny_encoder, cpu_processes):
    """Values of up to about 0.1 agree within 1e-5: float32 sums in another order.

    Means over the processes' own utterances or frames, averaged, are off by 0.03 and 0.06.
    """
    rng = np.random.default_rng(0)
    samples, frames = [9000, 4100, 7300, 5200, 6400], [30, 70, 80, 60, 20]
    noise, n_frames = rng.normal(0, 2000, sum(samples)), sum(frames)
    waves = store(tmp_path / "waves", samples, np.int16, noise)
    cnn = store(tmp_path / "cnn", frames, np.float32, rng.normal(size=(n_frames, 16)))
    clusters = rng.integers(4, size=(n_frames, 2))
    labels = store(tmp_path / "labels", frames, np.int32, clusters)
    targets = {"emotion": np.array([0, 1, 2, 0, 1]), "gender": np.array([0, 1, 0, 1, 1])}
    torch.manual_seed(0)
    settings = MULTITASK | {"head_layer": -2, "train_cnn": True}
    network = classifiers.MultitaskModel.load(str(tiny_encoder), **settings)
    predictor = masked_prediction.MaskedPredictionModel.load(
        str(tiny_encoder), scales=[4, 4], train_cnn=True, **PREDICTOR
    )
    network.save_pretrained(tmp_path / "classifier")
    predictor.save_pretrained(tmp_path / "predictor")
    rater = Rater.load(str(tiny_encoder), **RATER)
    rater.save_pretrained(tmp_path / "rater")
    rated = rng.normal(size=(5, 2)).astype(np.float32)
    ratings = {"ratings": rated, "sample_weight": np.ones(5, np.float32)}
    classify = (type(network).load, str(tmp_path / "classifier"))
    one_label = {task: labels[:1] for task, labels in targets.items()}
    masked = Utterances(cnn, cnn.utterances, None, labels, Masking(0.4, 10))
    cases = {
        "classify": (*classify, Utterances(waves, waves.utterances, targets)),
        "fewer than processes": (*classify, Utterances(waves, ["u0"], one_label)),
        "predict": (type(predictor).load, str(tmp_path / "predictor"), masked),
        "rate": (Rater.load, str(tmp_path / "rater"), Utterances(cnn, cnn.utterances, ratings)),
    }
    single, pair = tmp_path / "single", tmp_path / "pair"
    single.mkdir()
    pair.mkdir()
    leave_gradients(cases, single)
    launch(leave_gradients, cases, pair, processes=2, folder=tmp_path)
    for name in cases:
        whole = load_file(single / f"{name}0.safetensors")
        shares = [load_file(pair / f"{name}{process}.safetensors") for process in (0, 1)]
        lengths = torch.cat([share.pop("lengths") for share in shares])
        if name == "fewer than processes":
            assert lengths.tolist() == 2 * whole.pop("lengths").tolist()
        else:
            assert sorted(lengths.tolist()) == sorted(whole.pop("lengths").tolist())
            counts = [int(share["masked"]) for share in shares]
            assert sum(counts) == whole["masked"]
            assert name != "predict" or counts[0] > 1.3 * counts[1]
        whole.pop("masked")
        assert len(whole) > 50
        assert max(value.abs().max() for value in whole.values()) > 0.05
        for share in shares:
            share.pop("masked")
            # the concordance loss divides by small variances: two threads differ from one by 2e-4
            tolerance = 1e-3 if name == "rate" else 1e-5
            torch.testing.assert_close(share, whole, atol=tolerance, rtol=0)


def test_processes_have_equal_numbers_of_batches_and_together_every_utterance():
    dataset = SimpleNamespace(seconds=np.random.default_rng(0).uniform(1, 9, 200))
    dataset.seconds[7] = 50  # above the limit: alone in a batch

    def batches(**share):
        return list(DurationBatchSampler(dataset, 40, max_utterances=9, n_batches=61, **share))

    whole = batches()
    assert {1, 2, 3} < set(map(len, whole))
    shares = [batches(process=process, n_processes=3) for process in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        if len(batch) < 3:
            assert parts == [batch] * 3
        else:
            assert sorted(sum(parts, [])) == sorted(batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    in_order = batches(shuffle=False)
    shares = [batches(shuffle=False, process=process, n_processes=3) for process in range(3)]
    assert sorted(sum(shares, [])) == sorted(in_order)
    assert len(in_order) % 3 != 0


def stop_after_a_checkpoint(run: Path, prediction):
    if list(run.rglob("checkpoint-*/trainer_state.json")):
        raise GmpError("stopped by the test")
    return finetune._metrics(prediction)


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_stage_of_two_processes_stopped_and_resumed_is_that_of_one(
    tmp_path, tiny_encoder, cpu_processes, monkeypatch, capfd, lora_rank
):
    """Five validation utterances, in batches of three and two.

    Losses, norms and scores agree within 1e-4: rounding differs at every step, and Adam's first
    steps follow the sign of gradients that are nearly zero.
    """
    stages = []
    for processes in (1, 2):
        run = write_noise_corpus(tmp_path / f"run{processes}", validation="share")
        schedule = TrainingConfig(1e-3, 3, 0, 10, batch_size=3, processes=processes)
        network = replace(SMALL, lora_rank=lora_rank)
        stage = partial(classifier, run, tiny_encoder, "ams", schedule, network=network)
        if processes == 2:
            with monkeypatch.context() as patch:
                patch.setattr(finetune, "_metrics", partial(stop_after_a_checkpoint, run))
                with pytest.raises(GmpError, match=r"^stopped by the test$"):
                    stage()
            assert "epoch 1/3: training loss" in capfd.readouterr().out
        stages.append(stage())
    printed = capfd.readouterr().out
    assert printed.count("epoch 2/3: training loss") == printed.count("epoch 3/3") == 1
    assert "epoch 1/3" not in printed
    histories = [pd.read_csv(stage / "history.csv") for stage in stages]
    pd.testing.assert_frame_equal(*histories, atol=1e-4, rtol=0)
    tables = [pd.read_parquet(stage / "predictions.parquet") for stage in stages]
    assert (tables[0].part == "validation").sum() == 5
    pd.testing.assert_frame_equal(*tables, atol=1e-4, rtol=0)
    files = [{path.relative_to(stage) for path in stage.rglob("*")} for stage in stages]
    assert files[0] == files[1]


def test_a_file_is_pickled_as_its_path_and_an_array_as_its_values(tmp_path):
    on_disk = store(tmp_path / "frames", [600, 400], np.float32, np.arange(1000))
    pickled = pickle.dumps(on_disk)
    assert len(pickled) < 1000
    in_memory = Ragged(np.arange(5), {"a": 2, "b": 3})
    assert pickle.loads(pickled)["u1"].tolist() == list(range(600, 1000))
    assert pickle.loads(pickle.dumps(in_memory))["b"].tolist() == [2, 3, 4]


def test_more_processes_than_gpus_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(GmpError, match="processes: found 2, expected at most 1 "):
        config = TrainingConfig(epochs=1, processes=2)
        train(None, [0], [0], tmp_path, config, compute_metrics=None, selection_metric="loss")
    with pytest.raises(GmpError, match="processes: found 0, expected more than 0"):
        TrainingConfig(epochs=1, processes=0)
