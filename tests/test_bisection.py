"""The search for the largest radius, against a proof whose true radius is known; and that the three relaxations share it."""

import pytest
import torch

from robustbench_rkhs.certificates import AlphaCrownCertificate, CrownCertificate, IBPCertificate
from robustbench_rkhs.certificates.bisection import LARGEST, largest
from robustbench_rkhs.certificates.relaxation import RelaxationCertificate

TRUTH = torch.tensor([0.0, 1e-5, 0.03, 0.4, 7.0, 2e5], dtype=torch.float64)


def knowing(asked):
    """Proves a ball where it lies inside the true one, and nothing where not."""

    def proves(which, radii):
        asked.extend(zip(which.tolist(), radii.tolist(), strict=True))
        return torch.where(radii <= TRUTH[which], radii, 0.0)

    return proves


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_the_radius_is_below_the_truth_and_within_the_tolerance(tolerance):
    found = largest(knowing([]), torch.zeros_like(TRUTH), (0.1, 0.5), True, tolerance).radius
    assert (found <= TRUTH).all()
    inner = slice(1, 5)
    assert (found[inner] >= TRUTH[inner] / (1 + 2 * tolerance)).all() and found[0] == 0 and found[5] >= LARGEST


def test_without_a_search_only_what_was_asked_for_is_tried():
    asked = []
    found = largest(knowing(asked), torch.zeros_like(TRUTH), (0.5, 0.02, float("inf"), 0.0), False, 1e-2).radius
    assert found.tolist() == [0.0, 0.0, 0.02, 0.02, 0.5, 0.5]
    assert {radius for _, radius in asked} == {1e-9, 0.02, 0.5}
    assert (1, 0.5) not in asked  # where a ball was not proved, no larger one is tried


def test_what_a_proof_reaches_beyond_its_ball_is_kept():
    found = largest(lambda which, radii: TRUTH[which], torch.zeros_like(TRUTH), (), True, 1e-2).radius
    assert torch.equal(found, TRUTH)


def test_the_relaxations_share_their_fields():
    shared = set(RelaxationCertificate.model_fields)
    assert shared == {"norm", "box", "search", "tolerance", "step", "network"}
    for kind in (IBPCertificate, CrownCertificate, AlphaCrownCertificate):
        assert issubclass(kind, RelaxationCertificate) and shared | {"name"} <= set(kind.model_fields)
    assert (IBPCertificate().norm, CrownCertificate().norm) == ("linf", "l2")
