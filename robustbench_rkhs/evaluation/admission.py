"""Selection of certificates: those that do not refuse the model by its graph alone, before anything is computed."""

from collections.abc import Mapping

import numpy as np

from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.certificates.refusals import in_lines, refusals
from robustbench_rkhs.evaluation.certificate_job import unproved
from robustbench_rkhs.evaluation.phase_state import Work


def admitted(work: Work, certificates: Mapping[str, Certificate]) -> dict[str, Certificate]:
    """The certificates that may have a proof, by label. The others give `refused` rows; each reason is reported once."""
    split = work.subject.split
    refused = refusals(certificates, work.subject.model, tuple(split.shape), work.recipe.norm)
    for label in refused:
        work.tables.append(unproved(work.subject, work.certify(certificates[label], label, np.arange(len(work.index))), "refused"))
    work.refuse(in_lines(refused))
    return {label: one for label, one in certificates.items() if label not in refused}
