"""The linear fit against scikit-learn, and as the layer that it becomes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowers_torch.training import linear_probe as linear
from flowers_torch.training.linear_probe import fit_linear_probe, fit_logistic_regression


def problem(photos: int = 120, width: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(photos) % classes
    centers = torch.randn(classes, width, generator=generator)
    return 0.02 * (centers[labels] + torch.randn(photos, width, generator=generator)), labels


def test_it_is_scikit_learn_s_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    features, labels = problem()
    probe = fit_logistic_regression(features, labels, 3, l2=2.0)
    inputs = ((features - probe.mean) / probe.scale).numpy().astype(np.float64)
    model = linear_model.LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(inputs, labels.numpy())
    theirs = torch.tensor(model.predict_log_proba(inputs), dtype=torch.float32)
    assert torch.allclose(probe.logits(features).log_softmax(1), theirs, atol=2e-3)


def test_the_layer_computes_what_the_probe_does() -> None:
    features, labels = problem()
    probe = fit_logistic_regression(features, labels, 3)
    assert torch.allclose(F.linear(features, *probe.layer()), probe.logits(features), atol=1e-4)


def test_the_penalty_is_chosen_on_validation() -> None:
    features, labels = problem()
    parts = (features[:60], labels[:60]), (features[60:], labels[60:])
    probe, l2 = fit_linear_probe(*parts, 3, grid=(100.0, 10.0, 1.0, 0.1, 0.01))
    losses = {
        grid: float(F.cross_entropy(fit_logistic_regression(*parts[0], 3, grid).logits(parts[1][0]), parts[1][1]))
        for grid in (100.0, 10.0, 1.0, 0.1, 0.01)
    }
    assert l2 == min(losses, key=lambda grid: losses[grid])
    assert float(F.cross_entropy(probe.logits(parts[1][0]), parts[1][1])) == pytest.approx(losses[l2])


def test_class_weights_and_smoothing_are_in_the_loss() -> None:
    features, labels = problem()
    plain = fit_logistic_regression(features, labels, 3).logits(features)
    weighted = fit_logistic_regression(features, labels, 3, class_weights=torch.tensor([9.0, 1.0, 1.0])).logits(
        features
    )
    assert int((weighted.argmax(1) == 0).sum()) > int((plain.argmax(1) == 0).sum())
    smooth = fit_logistic_regression(features, labels, 3, l2=0.01, label_smoothing=0.2).logits(features)
    sure = fit_logistic_regression(features, labels, 3, l2=0.01).logits(features)
    assert smooth.softmax(1).max(1).values.mean() < sure.softmax(1).max(1).values.mean()


@pytest.mark.parametrize(("noise", "stronger"), [(0.2, False), (3.0, True)])
def test_the_penalty_is_looked_for_in_both_directions(
    noise: float, stronger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    features = F.one_hot(labels, 40).float() + noise * torch.randn(400, 40)
    parts = (features[:200], labels[:200]), (features[200:], labels[200:])
    every = [fit_logistic_regression(*parts[0], 4, l2) for l2 in linear.L2_GRID]
    losses = [float(F.cross_entropy(probe.logits(parts[1][0]), parts[1][1])) for probe in every]
    asked: list[float] = []
    real = linear.fit_logistic_regression
    monkeypatch.setattr(linear, "fit_logistic_regression", lambda *given: (asked.append(given[3]), real(*given))[1])
    _, l2 = fit_linear_probe(*parts, 4)
    assert l2 == linear.L2_GRID[losses.index(min(losses))]
    assert (l2 > linear.FIRST) == stronger and asked[0] == linear.FIRST and len(asked) < len(every)


def test_many_features_of_few_images_are_fitted_in_the_space_that_they_span(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 2100, generator=generator), torch.arange(40) % 3
    features[:, 0] += labels * 5
    held_out = (torch.randn(30, 2100, generator=generator), torch.arange(30) % 3)
    fast, l2 = fit_linear_probe((features, labels), held_out, 3)
    monkeypatch.setattr(linear, "MANY_FEATURES", 10_000)
    slow, same = fit_linear_probe((features, labels), held_out, 3)
    assert l2 == same
    torch.testing.assert_close(fast.logits(held_out[0]), slow.logits(held_out[0]), rtol=1e-2, atol=1e-2)
    weight, bias = fast.layer()
    torch.testing.assert_close(held_out[0] @ weight.T + bias, fast.logits(held_out[0]), rtol=1e-3, atol=1e-3)
