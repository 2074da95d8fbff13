"""Ensembles average the predictions of several runs; model soups average their weights.

Validation images select a candidate; test images only report on it. Wortsman et al. 2022, "Model soups" and
"Robust fine-tuning of zero-shot models" (interpolation between two sets of weights).
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError
from flowers_torch.evaluation.metrics import Scores, fit_temperature, score

State = dict[str, Tensor]
ValAndTest = tuple[Tensor, Tensor]  # logits or labels of the validation and of the test images
INTERPOLATION = (0.25, 0.5, 0.75)  # fractions of the second run's weights


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A run, an ensemble or a soup with its scores."""

    name: str
    temperature: float
    val: Scores
    test: Scores
    logits: Tensor  # calibrated, of the validation images (N, classes)
    state: State | None = None  # weights, unless the candidate is an ensemble


def score_candidate(name: str, logits: ValAndTest, labels: ValAndTest, state: State | None = None) -> Candidate:
    """Scores of a candidate at the temperature that is fitted on validation images."""
    temperature = fit_temperature(logits[0], labels[0])
    val, test = (score(each / temperature, truth) for each, truth in zip(logits, labels, strict=True))
    return Candidate(name, temperature, val, test, logits[0] / temperature, state)


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the lowest validation loss."""
    return min(candidates, key=lambda candidate: candidate.val.loss)


def mean_prediction(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean probability (N, classes), from the calibrated logits of each network."""
    stacked = torch.stack([each.double() for each in logits]).log_softmax(2)
    return (stacked.logsumexp(0) - torch.tensor(float(len(logits))).log()).float()


def average_weights(states: Sequence[State], fractions: Sequence[float]) -> State:
    """Weighted mean of state dicts; integer counters come from the first one.

    Raises:
        ModelFileError: the networks differ.
    """
    first, *others = ({name: tensor.shape for name, tensor in state.items()} for state in states)
    if any(other != first for other in others):
        raise ModelFileError("the runs have different networks", "average weights of one network only")
    weights = torch.tensor(fractions)
    mixed = dict(states[0])
    for name, value in mixed.items():
        if value.is_floating_point():
            stacked = torch.stack([state[name] for state in states])
            mixed[name] = torch.tensordot(weights.to(value.dtype), stacked, 1)
    return mixed


def model_soups(
    names: Sequence[str],
    states: Sequence[State],
    singles: Sequence[Candidate],
    labels: ValAndTest,
    predict: Callable[[State], ValAndTest],
) -> list[Candidate]:
    """Averages the weights of runs that started from the same weights; `singles` are the scores of each run.

    For two runs it returns the points between them. For more it returns the mean of all runs and the greedy
    soup, which adds runs from the best to the worst as long as the validation loss falls. `predict`, the only
    expensive step, returns the logits of the validation and of the test images for given weights.
    """

    def soup(title: str, members: Sequence[State], fractions: Sequence[float]) -> Candidate:
        state = average_weights(members, fractions)
        return score_candidate(f"weights: {title}", predict(state), labels, state)

    if len(states) == 2:
        first, second = names
        return [soup(f"{1 - f:g} of {first}, {f:g} of {second}", states, (1 - f, f)) for f in INTERPOLATION]
    uniform = soup("mean of all", states, [1 / len(states)] * len(states))
    order = sorted(range(len(states)), key=lambda i: singles[i].val.loss)
    members, best = [order[0]], singles[order[0]]
    for index in order[1:]:
        trial = [*members, index]
        title = "greedy soup of " + ", ".join(names[i] for i in trial)
        candidate = soup(title, [states[i] for i in trial], [1 / len(trial)] * len(trial))
        if candidate.val.loss < best.val.loss:
            members, best = trial, candidate
    return [uniform] if len(members) == 1 else [uniform, best]
