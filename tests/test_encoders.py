import json
import shutil
from functools import partial

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import CONFIGS, FINETUNED, MULTITASK, ONCE, TINY, multitask, save_encoder, truncate
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.models.classifiers import EmotionClassifier, MultitaskModel
from gmp_utils.models.encoder import (
    SpeechModel,
    _norm_each,
    _norm_masked,
    fft_convolution,
    position_convolution,
)
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.weights import resolve
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances, collate

PROJECTION = "feature_projection.projection.weight"
LARGE = dict(
    hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, intermediate_size=4096,
    feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
)  # fmt: skip


def padded_batch(lengths):
    torch.manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(waveforms, lengths):
        row[:length] = torch.randn(length)
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_padding_changes_nothing(tmp_path, norm, kind):
    """The tolerance of 1e-4 is far above float32 rounding, and far below any leak (0.01 or more)."""
    encoder = save_encoder(tmp_path, kind, norm)
    torch.manual_seed(0)
    model = MultitaskModel.load(str(encoder), **MULTITASK).eval()
    lengths = [16000, 12345, 9000, 801]
    waveforms, n_samples = padded_batch(lengths)
    labels = torch.zeros(len(lengths), dtype=torch.int64)
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)
    with torch.no_grad():
        states, mask = model.hidden_states(waveforms, n_samples, layers=(-1, -3, 0))
        together = model(waveforms, n_samples, labels, labels)
        for row, length in enumerate(lengths):
            single = waveforms[row : row + 1, :length], n_samples[row : row + 1]
            alone, _ = model.hidden_states(*single, layers=(-1, -3, 0))
            for state, expected in zip(states, alone):
                close(state[row][mask[row]], expected[0])
            outputs = model(*single, labels[:1], labels[:1])
            for name in ("emotion_logits", "gender_logits"):
                close(together[name][row], outputs[name][0])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("kernel", [128, 64, 31])
@pytest.mark.parametrize("frames", [40, 231])
def test_position_embeddings_by_fft_equal_transformers(kind, kernel, frames):
    """Output and gradients on the CPU in float32, for even and odd lengths: rounding is about 1e-5."""
    torch.manual_seed(0)
    config = CONFIGS[kind](**TINY | {"num_conv_pos_embeddings": kernel})
    embedding = SpeechModel(config).base_model.encoder.pos_conv_embed
    x = torch.randn(2, frames, config.hidden_size, requires_grad=True)
    results = []
    for convolution in (position_convolution, fft_convolution):
        embedding.conv._conv_forward = convolution
        y = embedding(x)
        inputs = [x, *embedding.parameters()]
        results.append([y, *torch.autograd.grad(y.square().mean(), inputs)])
    reference = type(embedding)(config)  # the convolution of transformers
    reference.load_state_dict(embedding.state_dict())
    assert torch.equal(reference(x), results[0][0])
    for plain, by_fft in zip(*results):
        torch.testing.assert_close(by_fft, plain, atol=1e-5, rtol=1e-5)


def test_heads_of_an_earlier_training_are_replaced(tmp_path, tiny_encoder):
    """Whether they have the same shapes or not. Without `new_heads`, they are read, and have to fit."""
    torch.manual_seed(0)
    source, other = tmp_path / "model", FINETUNED | {"projection_size": 6, "emotions": ["a", "b"]}
    EmotionClassifier.load(str(tiny_encoder), **FINETUNED).save_pretrained(source)
    same = EmotionClassifier.load(str(source), **FINETUNED).state_dict()
    new = EmotionClassifier.load(str(source), new_heads=True, **FINETUNED).state_dict()
    assert {name.split(".")[0] for name in same if not torch.equal(same[name], new[name])} == {
        "head", "classifier",
    }  # fmt: skip
    smaller = EmotionClassifier.load(str(source), new_heads=True, **other)
    assert smaller.classifier.weight.shape == (2, 6)
    assert torch.equal(smaller.state_dict()[f"hubert.{PROJECTION}"], same[f"hubert.{PROJECTION}"])
    with pytest.raises(GmpError, match="no model could be read"):
        EmotionClassifier.load(str(source), **other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_without_a_loop_is_that_of_single_utterances(dtype):
    """For channels far from 0, too. It is computed in float32, so only its output is rounded."""
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(8, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, lengths = (torch.randn(3, 8, 500) + 10).to(dtype), torch.tensor([500, 400, 3])
    with torch.no_grad():
        expected = _norm_each(x.float(), lengths, norm)
        found = _norm_masked(x, lengths, norm)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), atol=2e-5, rtol=torch.finfo(dtype).eps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_what_the_cpu_does(tiny_encoder):
    """The fast position embedding and the norm without a loop, up to the rounding of TF32."""
    model = SpeechModel.load(str(tiny_encoder)).eval()
    batch = padded_batch([16000, 9000, 801])
    with torch.no_grad():
        expected, mask = model.hidden_states(*batch, layers=(0, -1))
        states, _ = model.cuda().hidden_states(*(x.cuda() for x in batch), layers=(0, -1))
    for state, reference in zip(states, expected):
        torch.testing.assert_close(state.cpu()[mask], reference[mask], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_encoders_equal_transformers(tmp_path, kind, size):
    """Random weights and one utterance: without padding, the forward of transformers is a reference.

    The last hidden state of a stable-norm model is before the norm in transformers, and after it here.
    Large models have four of their 24 layers here.
    """
    torch.manual_seed(0)
    config = CONFIGS[kind](**(LARGE if size == "large" else {}))
    reference = AutoModel.from_config(config).eval()
    reference.save_pretrained(tmp_path)
    model = SpeechModel.load(str(tmp_path)).eval()
    waveforms, n_samples = padded_batch([4000])
    layers = range(model.n_layers + 1)
    with torch.no_grad():
        states, _ = model.hidden_states(waveforms, n_samples, layers=layers)
        expected = reference(waveforms, output_hidden_states=True)
    for layer, state in zip(layers[:-1], states):
        torch.testing.assert_close(state, expected.hidden_states[layer], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[-1], expected.last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_layers_are_hugging_face_hidden_states(tiny_encoder, training):
    model = SpeechModel.load(str(tiny_encoder)).train(training)
    assert model.config.layerdrop == 0 < HubertConfig.from_pretrained(tiny_encoder).layerdrop
    reference = HubertModel.from_pretrained(tiny_encoder, layerdrop=0.0).eval()
    waveforms, n_samples = padded_batch([8000])
    layers = (0, 1, -3, -1)
    states, _ = model.hidden_states(waveforms, n_samples, layers=layers)
    with torch.no_grad():
        expected = reference(waveforms, output_hidden_states=True).hidden_states
    for layer, state in zip(layers, states):
        torch.testing.assert_close(state, expected[layer], atol=1e-5, rtol=1e-5)


def test_layers_above_the_last_requested_are_not_run():
    torch.manual_seed(0)
    model = SpeechModel(HubertConfig(**TINY)).eval()
    run = []
    for index, layer in enumerate(model.base_model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    batch = padded_batch([8000])
    model.hidden_states(*batch, layers=(-3, 1))
    assert run == [0, 1]
    model.hidden_states(*batch, layers=(-1,))
    assert run == [0, 1, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["embedded", "wav2vec2", "wavlm"])
def test_bfloat16_is_float32_up_to_its_rounding(monkeypatch, kind):
    """bfloat16 has a relative error of 0.2% per operation; layers of random weights amplify it."""
    torch.manual_seed(0)
    if kind == "embedded":
        model = SpeechModel.load(resolve("embedded")).eval()
    else:
        model = SpeechModel(CONFIGS[kind](**TINY)).eval()
    batch = padded_batch([16000, 9000])
    layers = range(model.n_layers + 1 if kind == "embedded" else 1)
    with torch.inference_mode():
        exact, mask = model.hidden_states(*batch, layers=layers)
        monkeypatch.setattr(hardware, "bfloat16", lambda: True)
        rounded, _ = model.hidden_states(*batch, layers=layers)
    for state, rounded_state in zip(exact, rounded):
        assert rounded_state.dtype == torch.float32
        assert not torch.equal(state, rounded_state)
        error = (state - rounded_state)[mask].norm() / state[mask].norm()
        assert error < 0.02


def saved_bytes_of_cnn(model) -> int:
    """Number of bytes that autograd saves while the CNN runs."""
    sizes, hooks = [], torch.autograd.graph.saved_tensors_hooks
    with hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        model.cnn(*padded_batch([16000]))
    return sum(sizes)


def test_a_frozen_cnn_stores_no_activations(tiny_encoder):
    frozen = SpeechModel.load(str(tiny_encoder), train_cnn=False).train()
    trained = SpeechModel.load(str(tiny_encoder), train_cnn=True).train()
    assert saved_bytes_of_cnn(frozen) == 0
    assert saved_bytes_of_cnn(trained) > 100_000
    waveforms, n_samples = padded_batch([16000])
    frozen.hidden_states(waveforms, n_samples)[0][0].sum().backward()
    assert all(p.grad is None for p in frozen.base_model.feature_extractor.parameters())


def test_masked_frames_do_not_depend_on_the_waveform(tiny_encoder):
    model = SpeechModel.load(str(tiny_encoder)).eval()
    waveforms, n_samples = padded_batch([8000])
    mask = torch.ones(1, 24, dtype=torch.bool)
    (state,), _ = model.hidden_states(waveforms, n_samples, mask)
    (changed,), _ = model.hidden_states(-2 * waveforms + 1, n_samples, mask)
    assert torch.equal(state, changed)


def test_old_weight_norm_keys_load(tiny_encoder, tmp_path):
    """Published folders name the positional convolution's weights `weight_g` and `weight_v`."""
    old = load_file(tiny_encoder / "model.safetensors")
    for name in [name for name in old if "parametrizations.weight.original" in name]:
        stem, number = name.split("parametrizations.weight.original")
        old[f"{stem}weight_{'gv'[int(number)]}"] = old.pop(name)
    assert sum(name.endswith(("weight_g", "weight_v")) for name in old) == 2
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(tiny_encoder / "config.json", tmp_path)
    loaded, reference = SpeechModel.load(str(tmp_path)), SpeechModel.load(str(tiny_encoder))
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_heads_are_initialized_by_torch(tiny_encoder):
    """transformers would not initialize our modules, and give linear layers a standard deviation of 0.02."""
    settings = FINETUNED | {"projection_size": 200}
    model = EmotionClassifier.load(str(tiny_encoder), **settings)
    bounds = {
        "classifier.weight": np.sqrt(6 / 202),  # Xavier
        "head.projection.2.weight": 1 / np.sqrt(200),  # Kaiming with a = sqrt(5)
        "head.lstm.1.weight_hh_l0": 1 / np.sqrt(8),
    }
    for name, bound in bounds.items():
        maximum = model.get_parameter(name).abs().max().item()
        assert 0.9 * bound < maximum <= bound, name


def test_loaded_weights_are_aligned(tiny_encoder):
    """They are aligned to 64 bytes like torch's own tensors; otherwise the last bits of results vary."""
    model = SpeechModel.load(str(tiny_encoder))
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (None, None, "no model could be read"),
        ("pytorch_model.bin", truncate, "no model could be read"),
        ("model.safetensors", truncate, "no model could be read"),
        ("model.safetensors", lambda tensors: tensors.pop(PROJECTION), f"missing.*{PROJECTION}"),
        ("model.safetensors", lambda tensors: tensors[PROJECTION].fill_(np.nan), f"{PROJECTION}.*NaN"),
    ],
)  # fmt: skip
def test_unusable_weights_are_named(tiny_encoder, tmp_path, file, damage, message):
    """Missing, truncated, incomplete, or not finite."""
    shutil.copy(tiny_encoder / "config.json", tmp_path)
    tensors = load_file(tiny_encoder / "model.safetensors")
    if damage not in (None, truncate):
        damage(tensors)
    if file:
        save = partial(save_file, metadata={"format": "pt"})
        (torch.save if file.endswith("bin") else save)(tensors, tmp_path / file)
    if damage is truncate:
        truncate(tmp_path / file)
    with pytest.raises(GmpError, match=f"{tmp_path}.*{message}"):
        SpeechModel.load(str(tmp_path))


def test_unusable_encoders_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GmpError, match=r"no config\.json"):
        resolve(str(tmp_path))
    for path in ("./not/there", "runs/not/there"):
        with pytest.raises(GmpError, match="no such folder"):
            resolve(path)
    with pytest.raises(GmpError, match="nobody/nothing"):
        SpeechModel.load("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(GmpError, match="a bert, expected one of hubert, wav2vec2, wavlm"):
        SpeechModel.load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True, expected false"),
        ("wav2vec2", {"add_adapter": True}, "add_adapter is True, expected false"),
        ("wavlm", {"add_adapter": True}, "add_adapter is True, expected false"),
        ("hubert", {"conv_stride": (5, 2, 2, 2, 2, 2, 4)}, r"conv_stride is .*4.*, expected .*320"),
        ("hubert", {"conv_kernel": (10, 3, 3, 3, 3, 2, 3)}, r"conv_kernel is .*, expected .*400"),
    ],
)
def test_other_architectures_are_rejected(tmp_path, kind, settings, message):
    AutoModel.from_config(CONFIGS[kind](**TINY, **settings)).save_pretrained(tmp_path)
    with pytest.raises(GmpError, match=f"{tmp_path}.*{message}"):
        SpeechModel.load(str(tmp_path))


def test_encoders_of_other_recordings_are_rejected(tmp_path):
    """Group norm over time makes normalized and other inputs equal, up to its epsilon."""
    group, layer = (save_encoder(tmp_path / norm, "wavlm", norm) for norm in ("group", "layer"))
    for folder in (group, layer):
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    SpeechModel.load(str(group))
    with pytest.raises(GmpError, match="do_normalize is False, expected true"):
        SpeechModel.load(str(layer))
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(group)
    with pytest.raises(GmpError, match="sampling_rate is 8000, expected 16000"):
        SpeechModel.load(str(group))


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_encoder, tiny_wav2vec2):
    """The hub's cache without a network: me/encoder with two commits, of which main is the first."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--me--encoder"
    for commit, source in (("a" * 40, tiny_encoder), ("b" * 40, tiny_wav2vec2)):
        shutil.copytree(source, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "refs" / "v2").write_text("b" * 40)
    weights._download.cache_clear()
    yield folder
    weights._download.cache_clear()


def test_a_revision_is_that_of_the_hub(hub):
    revisions = {"": "a", "@main": "a", "@v2": "b", f"@{'b' * 40}": "b"}
    for revision, commit in revisions.items():
        encoder = f"me/encoder{revision}"
        assert resolve(encoder) == str(hub / "snapshots" / (commit * 40))
        assert weights.fingerprint(encoder) == f"me/encoder@{commit * 40}"
        kind = SpeechModel.load(resolve(encoder)).config.model_type
        assert kind == {"a": "hubert", "b": "wav2vec2"}[commit]
        objective = {"a": "clusters", "b": "contrastive"}[commit]
        assert weights.pretraining_objective(encoder) == objective
        assert weights.n_layers(encoder) == 4
    with pytest.raises(GmpError, match=r"'me/encoder@v3': not available .*@revision"):
        resolve("me/encoder@v3")


def test_changed_weights_on_the_hub_are_noticed(hub, noise_corpus, capsys):
    """Without a revision, the stage is made again and names the commit."""
    stage = multitask(noise_corpus, "me/encoder", ONCE)
    assert read_json(stage / "provenance.json")["inputs"] == [f"me/encoder@{'a' * 40}"]
    multitask(noise_corpus, "me/encoder", ONCE)
    assert "02_train_multitask is up to date" in capsys.readouterr().out
    (hub / "refs" / "main").write_text("b" * 40)
    assert weights.source_of(stage) == str(hub / "snapshots" / ("a" * 40))
    weights._download.cache_clear()  # as in another process
    multitask(noise_corpus, "me/encoder", ONCE)
    assert "02_train_multitask is up" not in capsys.readouterr().out
    assert read_json(stage / "provenance.json")["inputs"] == [f"me/encoder@{'b' * 40}"]
    assert weights.source_of(stage) == str(hub / "snapshots" / ("b" * 40))
    listed = hub / "snapshots" / ("b" * 40) / weights.TRAINING_RECORDINGS
    weights.write_training_recordings(listed.parent, {("1f0", "")})
    with pytest.raises(GmpError, match="was trained or selected on 1 test recordings"):
        multitask(noise_corpus, "me/encoder", ONCE)


def test_cached_cnn_output_equals_the_cnn(tiny_encoder, noise_corpus):
    corpus = open_corpus(str(noise_corpus))
    model = SpeechModel.load(str(tiny_encoder)).eval()
    cached = features.model_inputs(model, corpus)
    model.cpu()  # a GPU may have computed the cache; its convolutions round to ten bits (TF32)
    tolerance = 1e-2 if torch.cuda.is_available() else 1e-4
    names = corpus.waveforms.utterances[:3]
    with torch.inference_mode():
        datasets = Utterances(cached, names), Utterances(corpus.waveforms, names)
        batches = [collate([dataset[index] for index in range(3)]) for dataset in datasets]
        states = [model.hidden_states(**batch)[0][0] for batch in batches]
    for row, name in enumerate(names):
        length = cached.lengths[name]
        cached_states, states_of_waveforms = states[0][row, :length], states[1][row, :length]
        np.testing.assert_allclose(cached_states, states_of_waveforms, atol=tolerance)
