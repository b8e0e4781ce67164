"""The table of predictions that every classifier leaves."""

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
    """Write the table that every classifier leaves, predictions.parquet.

    Its columns are utterance, speaker, gender, true, predicted, a column of scores per emotion, and part.

    Parameters
    ----------
    folder : Path
    manifest : DataFrame
        Indexed by utterance.
    parts : dict of str to list of str
        Utterances of each part of the fold.
    scores : dict of str to (n_utterances, n_emotions) float
        Of some of the parts; the highest score wins.
    emotions : list of str
    """
    tables = []
    for part, part_scores in scores.items():
        table = manifest.loc[parts[part], ["utterance", "speaker", "gender", "emotion"]]
        table = table.rename(columns={"emotion": "true"})
        predicted = np.array(emotions)[part_scores.argmax(axis=1)]
        columns = dict(zip(emotions, part_scores.T))
        tables.append(table.assign(predicted=predicted, **columns, part=part))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
