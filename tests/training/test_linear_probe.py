"""The linear fit against scikit-learn, and as the layer that it becomes."""

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


def forms() -> dict[str, torch.Tensor]:
    """Features of 120 images in shapes that a solver may stumble over."""
    plain, _ = problem()
    wide = torch.randn(120, 300, generator=torch.Generator().manual_seed(1))
    wide[:, :6] += 50 * plain
    return {
        "more images than features": plain,
        "more features than images": wide,
        "large": 1e4 * plain,
        "small": 1e-4 * plain,
        "far from zero": plain + 3,
        "hardly any variance": plain * 0.1 + 1,
        "hardly any variance, many features": wide * 1e-2 + 1,
        "one direction": plain[:, :1] @ torch.ones(1, 100) + 1e-4 * wide[:, :100],
        "one direction, many features": plain[:, :1] @ torch.ones(1, 300) + 1e-4 * wide,
        "one large feature": plain * torch.tensor([100.0, 1, 1, 1, 1, 1]),
        "a feature twice": torch.cat([plain, plain], 1),
        "a constant feature": torch.cat([plain, torch.ones(120, 1)], 1),
        "images twice, many features": wide[:60].repeat(2, 1),
        "no feature tells anything": torch.ones(120, 4),
        "no feature tells anything, many features": torch.ones(120, 200),
    }


@pytest.mark.parametrize("name", list(forms()))
@pytest.mark.parametrize("l2", [100.0, 2.0, 0.1])
def test_it_is_scikit_learn_s_logistic_regression(name: str, l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    features, (_, labels) = forms()[name], problem()
    probe = fit_logistic_regression(features, labels, 3, l2)
    centered = features.double() - features.double().mean(0)
    inputs = (centered / centered.square().mean().sqrt().clamp(min=1e-12)).numpy()
    model = linear_model.LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(inputs, labels.numpy())
    theirs = torch.tensor(model.predict_proba(inputs), dtype=torch.float32)
    torch.testing.assert_close(probe.logits(features).softmax(1), theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["more images than features", "more features than images"])
def test_a_fit_that_starts_at_another_one_ends_at_the_same_optimum(name: str) -> None:
    features, (_, labels) = forms()[name], problem()
    fits = linear._Fits(features, labels, 3, None, 0.1)
    for l2 in (100.0, 0.1, 30.0):
        alone = fit_logistic_regression(features, labels, 3, l2, label_smoothing=0.1)
        torch.testing.assert_close(fits.probe(l2).logits(features), alone.logits(features), atol=4e-3, rtol=2e-3)


def test_a_class_without_an_image_is_improbable() -> None:
    features, labels = problem()
    for given in (features, torch.cat([features, torch.randn(120, 200)], 1)):
        probabilities = fit_logistic_regression(given, labels, 5).logits(given).softmax(1)
        assert float(probabilities[:, 3:].max()) < 0.05


def test_the_penalty_is_chosen_on_validation() -> None:
    features, labels = problem()
    parts = (features[:60], labels[:60]), (features[60:], labels[60:])
    probe, l2 = fit_linear_probe(*parts, 3, grid=(100.0, 10.0, 1.0, 0.1, 0.01))
    losses = {
        grid: float(F.cross_entropy(fit_logistic_regression(*parts[0], 3, grid).logits(parts[1][0]), parts[1][1]))
        for grid in (100.0, 10.0, 1.0, 0.1, 0.01)
    }
    assert l2 == min(losses, key=lambda grid: losses[grid])
    assert float(F.cross_entropy(probe.logits(parts[1][0]), parts[1][1])) == pytest.approx(losses[l2], rel=1e-3)


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
    real = linear._Fits.probe
    monkeypatch.setattr(linear._Fits, "probe", lambda self, l2: (asked.append(l2), real(self, l2))[1])
    _, l2 = fit_linear_probe(*parts, 4)
    assert l2 == linear.L2_GRID[losses.index(min(losses))]
    assert (l2 > linear.FIRST) == stronger and asked[0] == linear.FIRST and len(asked) < len(every)
