"""The card of a model: what it was made of, what it is worth, and what it is not for."""

from pathlib import Path

import pandas as pd
from transformers import PretrainedConfig

from gmp_utils import runs
from gmp_utils.classifiers import SYSTEM, classifiers, collect, lineage
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

`speech_heard` is the share of test utterances that are taken for speech, `altered_speech_heard` of the
same with noise 5 to 25 dB below them, half of them as by telephone; `noise_refused` is the share of
noises that are not (silence, white, pink and brown noise, hum, tones, clicks). Where no speech is heard,
scores go to chance. Music, laughter and several voices at once were not tried. Gender, speech and
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
    """Rows of `classifiers` that are of a network's variant and loss: its own, other folds and seeds."""
    found = classifiers(str(stage.parents[3]))
    own = found.loc[found.stage == stage, SYSTEM].iloc[0]
    return found[(found[SYSTEM] == own).all(axis=1)]


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
    speaker, system = corpus.manifest.speaker, same_system(stage)[SYSTEM].iloc[0]
    predictions = collect(str(stage.parents[3]))
    own = predictions[(predictions[SYSTEM] == system).all(axis=1)]
    folds = own.fold.nunique()
    scores = {
        name: _percent(*with_interval(own, metric, 0))
        for name, metric in (("UAR", uar), ("WAR", war))
    }
    told = runs.read_json(stage / "params.json")
    return TEXT.format(
        emotions=", ".join(config.label2id),
        encoder=told["encoder"],
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
            f"{', '.join(system)}: UAR {scores['UAR']}, WAR {scores['WAR']} percent, pooled over {folds} of "
            f"{len(corpus.protocol.folds)} folds, a network for each; {own.speaker.nunique()} test speakers, "
            "95 % intervals by speaker."
        ),
        n_test=len(parts["test"]),
        tested=speaker.loc[parts["test"]].nunique(),
        metrics="\n".join(f"| {name} | {value:.3f} |" for name, value in metrics.items()),
    )
