from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from nfl_core.errors import LearningError
from nfl_core.learning import NestedModel, Samples, joint_loss, label_prior, plain_loss, score, score_logits


def gradients_of(loss: torch.Tensor, module: NestedModel) -> dict[str, torch.Tensor]:
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def test_the_generic_head_never_sees_the_personal_loss(
    make_model: Callable[..., NestedModel], make_samples: Callable[..., Samples]
) -> None:
    module, data = make_model(), make_samples()
    prior = label_prior(data.y, num_classes=3)
    both = gradients_of(joint_loss(module, data.x, data.y, prior), module)
    balanced = gradients_of(cross_entropy(module.generic(module.features(data.x)) + prior, data.y), module)
    assert torch.equal(both["head.weight"], balanced["head.weight"])
    assert bool(both["private.weight"].abs().sum() > 0)
    assert not torch.equal(gradients_after_residual(module, data, prior), balanced["body.0.weight"])


def gradients_after_residual(module: NestedModel, data: Samples, prior: torch.Tensor) -> torch.Tensor:
    """With a private head that is not zero the body learns from the personal loss as well."""
    with torch.no_grad():
        next(module.private.parameters()).fill_(0.1).mul_(torch.arange(1, 4)[:, None])
    return gradients_of(joint_loss(module, data.x, data.y, prior), module)["body.0.weight"]


def test_the_plain_loss_leaves_the_private_head_alone(
    make_model: Callable[..., NestedModel], make_samples: Callable[..., Samples]
) -> None:
    module, data = make_model(), make_samples()
    found = gradients_of(plain_loss(module, data.x, data.y, torch.zeros(3)), module)
    assert not bool(found["private.weight"].any())
    assert bool(found["head.weight"].any())


def test_the_prior_is_the_logarithm_of_smoothed_frequencies() -> None:
    prior = label_prior(torch.tensor([0, 0, 2]), num_classes=3)
    assert prior.tolist() == pytest.approx([math.log(2.5 / 4.5), math.log(0.5 / 4.5), math.log(1.5 / 4.5)])
    assert float(prior.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize("labels", [[], [3], [-1]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    with pytest.raises(LearningError, match="within 0 to 2"):
        label_prior(torch.tensor(labels, dtype=torch.int64), num_classes=3)


def test_a_score_of_values_that_are_not_finite_is_infinitely_bad() -> None:
    assert score_logits(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0])).loss == float("inf")
    good = score_logits(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    assert good.accuracy == 0.5
    assert good.loss == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2)


def test_no_samples_have_no_score(make_model: Callable[..., NestedModel]) -> None:
    with pytest.raises(LearningError, match="no samples"):
        score(make_model(), torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
