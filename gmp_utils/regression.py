"""Continuous emotion: valence, arousal and dominance, rated by a network that may be told who speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, set_seed

from gmp_utils import distributed, encoders, evaluation, features, hardware
from gmp_utils.batching import Utterances
from gmp_utils.errors import GmpError
from gmp_utils.heads import mean_over_time
from gmp_utils.interpreters import INTERPRETERS, MlpInterpreter, TransformerInterpreter
from gmp_utils.losses import concordance_loss
from gmp_utils.ragged import Ragged
from gmp_utils.training import Schedule, train

REPRESENTATIONS = ("none", "mean", "max", "learnt", "papt")


@dataclass(frozen=True)
class System:
    """What is told of a speaker, and what rates.

    Attributes
    ----------
    representation : str
        | representation | the speaker's vector |
        |---|---|
        | none | there is none |
        | mean, max | mean, or maximum, of the speaker's utterances by the untouched encoder |
        | learnt | learnt with the ratings |
        | papt | learnt while masked prediction goes on, then with the ratings |
    interpreter : str
        "mlp" or "transformer".
    position : str
        Of PAPT's vector, see `encoders.SPEAKER_POSITIONS`; "none" goes on without one.
    """

    representation: str = "none"
    interpreter: str = "mlp"
    position: str = "output"

    def __post_init__(self):
        for name, known in (
            ("representation", REPRESENTATIONS),
            ("interpreter", INTERPRETERS),
            ("position", encoders.SPEAKER_POSITIONS),
        ):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise GmpError(f"{name} {found!r}: expected one of {', '.join(known)}.")

    @property
    def name(self) -> str:
        """In tables and folders."""
        where = f"-{self.position}" if self.representation == "papt" else ""
        return f"{self.representation}{where}-{self.interpreter}"

    @property
    def learns_vectors(self) -> bool:
        """Whether there is a vector for each training speaker among the weights."""
        from_papt = self.representation == "papt" and self.position != "none"
        return self.representation == "learnt" or from_papt


def every_system(
    representations: Sequence[str], interpreters: Sequence[str], positions: Sequence[str]
) -> list[System]:
    """All representations with all interpreters; PAPT's positions with the first, "output" with all.

    Parameters
    ----------
    representations, interpreters, positions : sequence of str
        See `System`.
    """
    first, *others = interpreters
    found = [
        System(told, rates) for rates in interpreters for told in representations if told != "papt"
    ]
    if "papt" in representations:
        found += [System("papt", first, position) for position in positions]
        found += [System("papt", rates) for rates in others if "output" in positions]
    return found


class AttributeModel(encoders.SpeechModel):
    """An encoder and an interpreter of its last layer's frames.

    Where the encoder is not trained the frames themselves are its inputs, once computed for all epochs. The
    loss is that of a whole batch, of all processes together, and cannot be computed in pieces.
    """

    loss_of_batch = True

    def _build_heads(self, config) -> None:
        sizes = config.hidden_size, len(config.attributes)
        kind = {"mlp": MlpInterpreter, "transformer": TransformerInterpreter}[config.interpreter]
        self.interpreter = kind(*sizes)
        if config.fixed_vectors:
            self.project = nn.Linear(config.hidden_size, config.hidden_size)

    def read(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames, where they are valid, and what the interpreter is told of the speaker."""
        vector = None
        if speaker is not None:
            vector = self.project(speaker) if self.config.fixed_vectors else self.speakers(speaker)
        inside = self.config.speaker_position in ("input", "prefix")
        if self.train_encoder:
            (frames,), valid = self.hidden_states(
                inputs, lengths, speaker=speaker if inside else None
            )
        else:
            frames = inputs.float()
            valid = torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]
        if inside and self.config.interpreter == "mlp":
            vector = None  # the frames have it
        return frames, valid, vector

    def rate(
        self, inputs: Tensor, lengths: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rate utterances.

        Returns
        -------
        ratings : (batch, attributes) float32
            On the corpus's scale.
        features : (batch, dim) float32
            Mean over time of each utterance's frames, with the vector where it is added.
        """
        spread, offset = (
            inputs.new_tensor(each, dtype=torch.float32)
            for each in (self.config.spread, self.config.offset)
        )
        frames, valid, vector = self.read(inputs, lengths, speaker)
        means = mean_over_time(frames, valid)
        ratings = self.interpreter(frames, valid, vector) * spread + offset
        return ratings, means if vector is None else means + vector

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        ratings: Tensor,
        speaker: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Rate utterances, and compare.

        Parameters
        ----------
        inputs, lengths
            See `SpeechModel.hidden_states`; or frames, where the encoder is not trained.
        ratings : (batch, attributes) float32
        speaker : (batch, n_speakers) or (batch, hidden_size) float32, optional
            How much of each speaker's vector, or a vector.
        weight : (batch,) float32, optional

        Returns
        -------
        outputs : dict
            `loss`, see `concordance_loss`, and `predicted` (batch, attributes).
        """
        predicted, _ = self.rate(inputs, lengths, speaker)
        weight = torch.ones_like(ratings[:, 0]) if weight is None else weight
        compared = predicted, ratings, weight
        if self.training:
            compared = map(distributed.gathered, compared)
        return {"loss": concordance_loss(*compared), "predicted": predicted}


@dataclass(frozen=True)
class Told:
    """Utterances, and what is known of each.

    Attributes
    ----------
    inputs : Ragged
    ratings : dict of str to (attributes,) float32
    speaker : dict of str to (n,) float32, or None
    """

    inputs: Ragged
    ratings: dict[str, np.ndarray]
    speaker: dict[str, np.ndarray] | None

    def dataset(self, names: Sequence[str], weight: Sequence[float] | None = None) -> Utterances:
        """Some utterances; `weight` says how much each counts."""
        known = {"ratings": self.ratings, "speaker": self.speaker}
        targets = {
            task: np.stack([rows[name] for name in names]).astype(np.float32)
            for task, rows in known.items()
            if rows is not None
        }
        if weight is not None:
            targets["weight"] = np.asarray(weight, dtype=np.float32)
        return Utterances(self.inputs, names, targets)


def _metrics(attributes: list[str], prediction: EvalPrediction) -> dict[str, float]:
    """CCC of every attribute, and their mean, `ccc`."""
    labels = prediction.label_ids
    rated = labels[0] if isinstance(labels, tuple) else labels
    found = {
        f"ccc_{name}": evaluation.ccc(true, predicted)
        for name, true, predicted in zip(attributes, rated.T, prediction.predictions.T)
    }
    return found | {"ccc": float(np.mean(list(found.values())))}


def fit(
    model: AttributeModel,
    told: Told,
    training: list[str],
    held_out: list[str],
    folder: Path,
    schedule: Schedule,
    selection: str,
    weight: Sequence[float] | None = None,
) -> None:
    """Train a model to rate; see `gmp_utils.training.train`."""
    set_seed(schedule.seed)
    held = None if weight is None else np.ones(len(held_out))
    sets = told.dataset(training, weight), told.dataset(held_out, held)
    metrics = partial(_metrics, model.config.attributes)
    train(model, *sets, folder, schedule, metrics, "ccc", selection)


def apply(
    model: AttributeModel, told: Told, utterances: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rate and represent utterances.

    Returns
    -------
    ratings : (n_utterances, attributes) float32
    vectors : (n_utterances, hidden_size) float32
        See `AttributeModel.rate`.
    """
    dataset = told.dataset(utterances)
    del dataset.targets["ratings"]
    model.eval().to(hardware.device())
    with torch.inference_mode():
        found = [own for _, own in features.batches(dataset, "rate", model.rate)]
    ratings, vectors = (torch.cat(each).float().cpu().numpy() for each in zip(*found))
    return ratings, vectors
