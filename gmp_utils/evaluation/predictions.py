"""The table of predictions that every classifier writes."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_predictions(
    folder: Path,
    manifest: pd.DataFrame,
    parts: dict[str, list[str]],
    scores: dict[str, np.ndarray],
    emotions: list[str],
) -> None:
    """Write predictions.parquet: utterance, speaker, gender, true, predicted, scores by emotion, and part.

    `parts` has the utterances of each part of a fold, and `scores`, (n_utterances, n_emotions), are of some
    parts. The emotion with the highest score is predicted. The manifest is indexed by utterance.
    """
    tables = []
    for part, part_scores in scores.items():
        table = manifest.loc[parts[part], ["utterance", "speaker", "gender", "emotion"]]
        table = table.rename(columns={"emotion": "true"})
        columns = {"predicted": np.array(emotions)[part_scores.argmax(axis=1)]}
        columns |= dict(zip(emotions, part_scores.T))
        tables.append(table.assign(**columns, part=part))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
