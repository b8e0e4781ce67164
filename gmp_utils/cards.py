"""The card of a model: what it was made of, what it is worth, and what it is not for."""

from pathlib import Path

import pandas as pd
from transformers import PretrainedConfig

from gmp_utils import runs, weights
from gmp_utils.classifiers import SYSTEM, classifiers, lineage, settings_of
from gmp_utils.comparison import with_interval
from gmp_utils.evaluation import uar, war
from gmp_utils.preparation import Corpus

TEXT = """---
license: other
license_name: of-the-encoder-and-of-the-corpus
library_name: transformers
pipeline_tag: audio-classification
tags:
- speech-emotion-recognition
- gmp-tl
---

# Emotions in speech: {emotions}

Encoder {encoder}, fine-tuned on {corpus} by the GMP-TL workbench (after arXiv 2405.02151); stages
{stages}. It hears 16 kHz speech and tells how it would be labelled in that corpus; how sure it is was
calibrated on {calibrated}.

```python
import gmp_utils
from transformers import pipeline

gmp_utils.recognize("recording.wav", model="this folder")  # any length, rate and channels
pipeline("audio-classification", model="this folder")({{"raw": waveform, "sampling_rate": 16000}})
```

## Data and protocol

Corpus {corpus}: {n_train} training utterances of {speakers} speakers, fold {fold}, seed {seed}, git
commit {commit}. {protocol}

## Results

{results}

These weights, on the test speakers of fold {fold} ({n_test} utterances of {tested} speakers):

| | |
|---|---|
{metrics}

`calibration_error` is how far confidence is from the share that is right, on average, and
`calibration_error_as_trained` the same before temperature and readout of speech: of few validation
speakers calibration does not always help. `speech_heard` is the share of test utterances that are taken for
speech, `altered_speech_heard` of at most 400 of them with noise 5 to 25 dB below, half of them dulled above
3.4 kHz; `noise_refused` is the share of noises that are not (silence, white, pink and brown noise, hum,
tones, clicks, as long as utterances, made in the same way as those it was fitted to, by other numbers).
Where no speech is heard, scores go to chance and ratings to their mean. Noises below a second and buzzing
may be taken for speech; music, laughter and several voices at once were not tried. Gender, speech and
ratings are linear readouts.

## Use and limits

For research on, and teaching of, emotion in speech. It guesses how something *sounds* to the annotators
of one corpus, not what a person feels; speakers, languages, ages, rooms and microphones that the corpus
lacks were not measured, and errors are frequent. Not for judging people at work, at school, at a border
or in care, where the law of some countries forbids it (in the European Union, the AI Act, article 5, for
work and school). Recordings are people's voices: ask them first.

## Licence

The weights come from the encoder's, and from the corpus's recordings: their licences hold. See them
before you pass this on.
"""


def _percent(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{100 * value:.1f} (too few speakers for an interval)"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in (value, *interval)))


def same_system(stage: Path) -> pd.DataFrame:
    """Rows of `classifiers` that were made as a network was: its own, and other folds and seeds."""
    found = classifiers(str(stage.parents[3]))
    own = found.loc[found.stage == stage, SYSTEM].iloc[0]
    found = found[(found[SYSTEM] == own).all(axis=1)]
    return found[[settings_of(other) == settings_of(stage) for other in found.stage]]


def _tested(stage: Path) -> pd.DataFrame:
    predictions = pd.read_parquet(stage / "predictions.parquet")
    return predictions[predictions.part == "test"]


def card(
    stage: Path,
    corpus: Corpus,
    parts: dict[str, list[str]],
    metrics: dict[str, float],
    config: PretrainedConfig,
) -> str:
    """Write a model's card from what its run says of itself.

    Parameters
    ----------
    stage : Path
        Of `gmp_utils.finetuning.finetune`.
    corpus : Corpus
    parts : dict of str to list of str
        Utterances of the fold's parts.
    metrics : dict of str to float
        Of these weights, on the fold's test speakers.
    config : RecognizerConfig

    Returns
    -------
    card : str
        Markdown.
    """
    speaker, alike = corpus.manifest.speaker, same_system(stage)
    own = pd.concat(map(_tested, alike.stage))
    scores = {
        name: _percent(*with_interval(own, metric, 0))
        for name, metric in (("UAR", uar), ("WAR", war))
    }
    told = runs.read_json(stage / "params.json")
    is_folder = Path(weights.resolve(told["encoder"])).is_dir()
    return TEXT.format(
        emotions=", ".join(config.label2id),
        encoder=Path(told["encoder"]).name if is_folder else told["encoder"],
        corpus=corpus.name,
        stages=", ".join(runs.notebook_of(one) for one in lineage(stage)),
        calibrated=f"{len(parts['validation'])} validation utterances"
        if parts["validation"]
        else "NOTHING",
        n_train=len(parts["train"]),
        speakers=speaker.loc[parts["train"]].nunique(),
        fold=told["fold"],
        protocol=corpus.protocol.describe(),
        commit=runs.read_json(stage / "provenance.json")["git_commit"],
        seed=told["schedule"]["seed"],
        results=(
            f"{', '.join(alike[SYSTEM].iloc[0])}: UAR {scores['UAR']}, WAR {scores['WAR']} percent, pooled "
            f"over {alike.fold.nunique()} of {len(corpus.protocol.folds)} folds, a network for each; "
            f"{own.speaker.nunique()} test speakers, 95 % intervals by speaker."
        ),
        n_test=len(parts["test"]),
        tested=speaker.loc[parts["test"]].nunique(),
        metrics="\n".join(f"| {name} | {value:.3f} |" for name, value in metrics.items()),
    )
