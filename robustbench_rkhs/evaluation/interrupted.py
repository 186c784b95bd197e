"""An interruption from the keyboard inside a job, with what the job had found."""

from robustbench_rkhs.verdicts import Part


class Interrupted(KeyboardInterrupt):
    """The keyboard interrupted a job. `part`: its rows so far, of which the unfinished ones are computed again next time."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part
