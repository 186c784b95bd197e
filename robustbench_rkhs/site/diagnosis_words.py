"""Diagnoses in words: what a reader sees beside the names that tables and commands use."""

from robustbench_rkhs.verdicts import TEST_ABOVE_TRAINING

WORDS = {
    "softmaxed": "outputs that are no logits",
    "randomised": "answers that change when asked again",
    "zero_gradients": "gradients that point nowhere",
    "random_direction": "random steps that do more than the gradient",
    "logit_scale": "attacks that fail by the scale of the logits",
    "huge_eps": "images that withstand any change",
    "single_step": "one step that breaks more than many",
    "transfer": "another network's adversarial images that break more",
    "black_box": "queries that break more than gradients",
    "convergence": "more steps that break more",
    TEST_ABOVE_TRAINING: "better on test images than on training images",
}
"""By name, what a diagnosis looks for."""


def in_words(name: str) -> str:
    """What a diagnosis looks for, with its name behind; of one that is not known here, the name."""
    return f"{WORDS[name]} ({name})" if name in WORDS else name
