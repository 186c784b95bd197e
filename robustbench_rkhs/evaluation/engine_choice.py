"""Which engine computes the jobs of an evaluation, as typed: `here`, `torchrun`, `submitit:tasks=8`, `ray:gpus=0.5`. No PyTorch."""

from typing import Literal

from pydantic import Field

from robustbench_rkhs.nodes.node import Node, Real, UserError, did_you_mean
from robustbench_rkhs.nodes.parsing import parse, with_fields


class Here(Node):
    """This machine: one process, as many as --workers says, or one for each of several devices (`--device cuda:0,cuda:1`)."""

    name: Literal["here"] = "here"
    devices: tuple[str, ...] = ()
    """A process for each of these; empty: the evaluation's own device."""


class Ranks(Node):
    """Every process that torchrun or srun starts runs the same evaluation and takes the jobs that no other computes yet.

    They share the folder of parts and nothing else: a lost rank's job is taken over, and any rank that is left finishes the table.
    Rank and number of ranks are RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_NTASKS.
    """

    name: Literal["torchrun", "srun"] = "torchrun"


class Submitit(Node):
    """A job array of Slurm, submitted from a login node by submitit (extra `slurm`): its tasks are ranks of one evaluation.

    A task that is pre-empted or reaches its time limit is queued again, and goes on from the parts.
    """

    name: Literal["submitit"] = "submitit"
    tasks: int = Field(2, ge=1, le=1024)
    """Tasks of the array."""
    cluster: Literal["slurm", "local"] | None = None
    """local: processes on this machine. None: Slurm where it is there, else local."""
    folder: str = "reports/local/submitit"
    """Folder for scripts and logs, on a disk that all nodes share."""
    partition: str | None = None
    """Partition of the queue."""
    minutes: int = Field(60, ge=1)
    """Time limit of a task."""
    gpus: int = Field(0, ge=0)
    """GPUs of a task."""
    cpus: int = Field(1, ge=1)
    """CPU cores of a task."""
    memory: int = Field(8, ge=1)
    """GiB of memory of a task."""


class Ray(Node):
    """Tasks of a Ray cluster (extra `ray`): this process gives out the jobs, any node computes them; a lost node's are retried.

    Model and images are sent once to each node. Without an address: RAY_ADDRESS, else a cluster of this machine alone.
    """

    name: Literal["ray"] = "ray"
    address: str | None = None
    """Address of the cluster."""
    cpus: Real = Field(1.0, gt=0)
    """CPU cores of a job."""
    gpus: Real = Field(0.0, ge=0)
    """GPUs of a job; a fraction lets several share one."""
    retries: int = Field(3, ge=0)
    """How often a job is computed again whose worker or node was lost."""


AnyEngine = Here | Ranks | Submitit | Ray
KINDS: dict[str, type[AnyEngine]] = {"here": Here, "torchrun": Ranks, "srun": Ranks, "submitit": Submitit, "ray": Ray}


def engine_from(text: str) -> AnyEngine:
    """`NAME` or `NAME:option=value,...` as typed after --engine. Raises UserError in one line."""
    name, _, rest = text.partition(":")
    if name not in KINDS:
        raise UserError(f"--engine: no engine {name!r}; {did_you_mean(name, KINDS)}")
    found: AnyEngine = parse(KINDS[name], with_fields({"name": name}, rest, f"--engine {text!r}"), "--engine")
    return found
