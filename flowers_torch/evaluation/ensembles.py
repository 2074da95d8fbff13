"""Several runs as one: the mean of their answers, or the mean of their weights (a soup).

Which combination to take is chosen on validation photos; the test is looked at afterwards, for each of them.
Wortsman et al. 2022, "Model soups"; "Robust fine-tuning of zero-shot models" for the line between two.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError
from flowers_torch.evaluation.calibration import fit_temperature
from flowers_torch.evaluation.metrics import Scores, score

State = dict[str, Tensor]
Logits = tuple[Tensor, Tensor]  # of the validation and of the test photos
LINE = (0.25, 0.5, 0.75)  # shares of the second run's weights that are tried


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to combine runs, with what it came to."""

    name: str
    temperature: float
    val: Scores
    test: Scores
    state: State | None = None  # weights, where the combination is one network


def judge(name: str, logits: Logits, labels: Logits, state: State | None = None) -> Candidate:
    """Scores logits of validation and test, both at the temperature that validation wants."""
    temperature = fit_temperature(logits[0], labels[0])
    val, test = (score(part / temperature, truth) for part, truth in zip(logits, labels, strict=True))
    return Candidate(name, temperature, val, test, state)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The one with the least loss on validation."""
    return min(candidates, key=lambda candidate: candidate.val.loss)


def mean_prediction(parts: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean probability of several networks (N, classes), from calibrated logits of each."""
    stacked = torch.stack([part.double() for part in parts]).log_softmax(2)
    return (stacked.logsumexp(0) - torch.tensor(float(len(parts))).log()).float()


def mix(states: Sequence[State], shares: Sequence[float]) -> State:
    """Weighted mean of state dicts; counters (integers) are the first one's.

    Raises:
        ModelFileError: the networks differ.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ModelFileError("the runs have different networks", "average weights of one network only")
    weights = torch.tensor(shares)
    return {
        name: torch.tensordot(weights.to(value.dtype), torch.stack([state[name] for state in states]), 1)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def soups(
    names: Sequence[str],
    states: Sequence[State],
    singles: Sequence[Candidate],
    labels: Logits,
    predict: Callable[[State], Logits],
) -> list[Candidate]:
    """Averages of the weights of runs that started from the same weights.

    Args:
        names: Of the runs.
        states: Their weights.
        singles: What each came to alone.
        labels: Of the validation and the test photos.
        predict: Weights to logits of both; the one expensive step.

    Returns:
        For two runs the points of the line between them; for more the mean of all and the greedy soup, which
        takes runs in from the best down as long as validation gains.
    """
    if len(states) == 2:
        found = []
        for share in LINE:
            state = mix(states, (1 - share, share))
            title = f"weights: {1 - share:g} of {names[0]}, {share:g} of {names[1]}"
            found.append(judge(title, predict(state), labels, state))
        return found
    state = mix(states, [1 / len(states)] * len(states))
    uniform = judge("weights: mean of all", predict(state), labels, state)
    order = sorted(range(len(states)), key=lambda i: singles[i].val.loss)
    taken, best = [order[0]], singles[order[0]]
    for index in order[1:]:
        trial = [*taken, index]
        state = mix([states[i] for i in trial], [1 / len(trial)] * len(trial))
        title = "weights: greedy soup of " + ", ".join(names[i] for i in trial)
        candidate = judge(title, predict(state), labels, state)
        if candidate.val.loss < best.val.loss:
            taken, best = trial, candidate
    return [uniform] if len(taken) == 1 else [uniform, best]
