"""Interventions in networks whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MULTITASK, multitask, write_noise_corpus

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation.comparison import jackknife_interval
from gmp_utils.figures import layers
from gmp_utils.models.classifiers import MultitaskModel
from gmp_utils.stages import interventions
from gmp_utils.stages.interventions import changed
from gmp_utils.training.features import embed_and_classify, model_inputs


def load(encoder, **settings):
    """A multi-task model whose second layer adds nothing to its input, which is normalized already."""
    torch.manual_seed(0)
    model = MultitaskModel.load(str(encoder), **MULTITASK | settings).eval()
    layer = model.base_model.encoder.layers[1]
    for module in (layer.attention.out_proj, layer.feed_forward.output_dense):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    return model


def frames(model, x):
    with torch.inference_mode():
        return model.frames(x, torch.tensor([x.shape[1]]))[0]


def test_only_a_layer_that_does_something_is_missed(tiny_encoder):
    model, x = load(tiny_encoder), torch.randn(1, 4000)
    before, unchanged = frames(model, x), {}
    for layer in (1, 2, 3):
        with changed(model, layer, interventions._skip):
            unchanged[layer] = torch.allclose(frames(model, x), before, atol=1e-3)
    assert unchanged == {1: False, 2: True, 3: False}
    assert torch.equal(frames(model, x), before)  # the hooks are gone


def test_a_direction_after_the_last_layer_is_added_to_the_head_s_input(tiny_encoder):
    model, x, direction = load(tiny_encoder), torch.randn(1, 4000), torch.randn(32)
    expected = frames(model, x) + direction
    with changed(model, model.n_layers, interventions._add(direction)):
        assert torch.allclose(frames(model, x), expected, atol=1e-6)


def test_means_are_those_of_each_layer(tmp_path, tiny_encoder):
    """Layer 2 adds nothing, so its output is its normalized input. The last layer's is the head's input."""
    corpus, model = open_corpus(str(write_noise_corpus(tmp_path / "run"))), load(tiny_encoder)
    names = list(corpus.manifest.index[:3])
    means = interventions.layer_means(model, model_inputs(model, corpus), names)
    assert means.shape == (3, 4, 32)
    assert means[:, 1] == pytest.approx(means[:, 0], abs=1e-4)
    last = frames(model, torch.from_numpy(np.array(model_inputs(model, corpus)[names[2]]))[None])
    assert means[2, 3] == pytest.approx(last[0].mean(dim=0).numpy(), abs=1e-5)


def test_tables_of_a_trained_model(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run")
    stage = multitask(run, tiny_encoder)
    folder = interventions.intervene(str(run), 1, model="multitask")
    ablations, directions = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("ablations", "directions")
    )
    assert len(ablations) == 4 * 5 and len(directions) == 4 * 4
    corpus, network = open_corpus(str(run)), MultitaskModel.load(str(stage / "model"))
    names, train = (corpus.partition(1)[part] for part in ("validation", "train"))
    inputs = model_inputs(network, corpus)
    is_sad = (corpus.manifest.emotion == "sad").to_numpy()[corpus.manifest.index.get_indexer(train)]
    means = interventions.layer_means(network, inputs, train)[:, 3]
    added = torch.from_numpy(means[is_sad].mean(axis=0) - means[~is_sad].mean(axis=0))
    before = embed_and_classify(network, inputs, names)[1].argmax(axis=1)
    with changed(network, 4, interventions._add(added)):
        after = embed_and_classify(network, inputs, names)[1].argmax(axis=1)
    others = (corpus.manifest.emotion[names] != "sad").to_numpy()
    turned = (after == 3).astype(int) - (before == 3)
    row = directions.set_index(["layer", "emotion"]).loc[4, "sad"]
    assert row.difference == pytest.approx(turned[others].mean())
    # two validation speakers: the interval is over utterances
    low, high = jackknife_interval(
        np.stack([turned, 0 * turned + 1], 1)[others][..., None], lowest=-1
    )
    assert (row.low, row.high, row.over) == pytest.approx((low, high, "utterances"))
    figure = layers.interventions(ablations, directions)
    for panel, table in zip(figure.data, (ablations, directions)):
        assert panel.z == pytest.approx(100 * table.difference.to_numpy())


def test_changes_by_patches_are_those_computed_by_hand(tmp_path, tiny_encoder):
    """Only a linear head of the frames' mean follows the last layer. Layer 2 adds nothing to layer 1."""
    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run")))
    model, pair = load(tiny_encoder, head="linear"), list(corpus.manifest.index[:2])
    inputs = model_inputs(model, corpus)
    x, y = (frames(model, torch.from_numpy(np.array(inputs[name]))[None])[0] for name in pair)
    effect = (model.emotion.weight[2] - model.emotion.weight[0]) @ model.head.projection.weight
    difference = (x.mean(dim=0) - y.mean(dim=0)) @ effect
    table = interventions.patch(model, *(corpus.waveforms[name] for name in pair), ("c", "a"))
    assert (table.source - table.target).unique() == pytest.approx([difference.item()], abs=1e-5)
    nearest = np.linspace(0, len(x) - 1, len(y)).round()
    of_frames = ((x[nearest] - y) @ effect / len(y)).detach().numpy()
    expected = np.bincount(np.arange(len(y)) * 10 // len(y), weights=of_frames)
    rows = dict(iter(table.groupby("layer")))
    assert rows[4].change.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert rows[2].change.tolist() == pytest.approx(rows[1].change.tolist(), abs=1e-4)
    assert rows[4].end.iloc[-1] == pytest.approx(len(y) / 50)
    figure = layers.patches(table, "x", "y", ("c", "a"))
    cells = table.change.to_numpy().reshape(4, 10)
    np.testing.assert_array_equal(figure.data[0].z, cells)
    assert f"s of layer {abs(cells).max(axis=1).argmax() + 1}<br>" in figure.layout.title.text


def test_only_layers_below_the_head_are_patched(tmp_path, tiny_encoder):
    corpus = open_corpus(str(write_noise_corpus(tmp_path / "run")))
    model = load(tiny_encoder, head_layer=2)
    waveforms = [corpus.waveforms[name] for name in corpus.manifest.index[:2]]
    table = interventions.patch(model, *waveforms, ("c", "a"))
    assert table.layer.unique().tolist() == [1, 2]
    (whole,) = (
        interventions.patch(model, waveforms[0], waveforms[0], ("c", "a")).change.abs().agg(["max"])
    )
    assert whole < 1e-5  # an utterance's own frames change nothing


def test_a_model_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(GmpError, match="model 'encoder': it has no classifier; use multitask or"):
        interventions.intervene(str(tmp_path), 1, model="encoder")
