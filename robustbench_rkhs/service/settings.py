"""What a service is started with: its folders, its databases, the protocol of its board, and the limits of uploads."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from robustbench_rkhs.nodes.limits import STRANGERS, Bytes, Limits, Most
from robustbench_rkhs.nodes.node import Node

Kind = Literal["checkpoint", "adversarials"]
"""What can be submitted; also the scopes of tokens."""
Sent = Literal["checkpoint", "adversarials", "bundle"]
"""What can be sent: a bundle holds either, signed."""
KINDS: tuple[Kind, ...] = ("checkpoint", "adversarials")


class Settings(Node):
    """Settings of a service. The server, the worker and the admin command share them."""

    folder: Path
    """Absolute folder of the service: databases, uploads, states, the site."""
    out: Path
    """Absolute folder of the verdicts that the board is made of."""
    database: str = ""
    """SQLAlchemy's URL of the database, such as postgresql+psycopg://...; empty: SQLite in the folder."""
    queue: str = ""
    """redis://... for wake-up messages; empty: SQLite in the folder."""
    protocol: dict[str, Any] = {"eps": ["0.25", "0.5", "1.0"]}
    """Fields of the evaluation's recipe: the same for every checkpoint."""
    sample: Most = 100
    """Images of the first look at a checkpoint."""
    device: str = "cpu"
    """Where the worker evaluates."""
    limits: Limits = STRANGERS
    """Limits on the files of a submission and on the process that evaluates it."""
    upload: Bytes = 2 << 30
    """Bytes of one upload, over all its files."""
    upload_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """The longest that one upload may take."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Attempts at a submission whose worker dies, before it waits for a person."""
    lease: Annotated[float, Field(gt=0)] = 60.0
    """Seconds without a sign of life after which a worker counts as dead."""
    moderated: bool = False
    """A person approves every submission before it is evaluated."""
    readers: Most = 500
    """Streams of events that are open at once."""

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'service.db'}"

    @property
    def asked(self) -> str:
        """Norm and radii of the protocol, as rkhs-eval takes them."""
        eps = self.protocol.get("eps", ())
        radii = eps if isinstance(eps, (list, tuple)) else [eps]
        return f"--norm {self.protocol.get('norm', 'l2')} --eps {' '.join(map(str, radii))}"

    @property
    def incoming(self) -> Path:
        """Uploads that are not checked yet."""
        return self.folder / "incoming"

    @property
    def bundles(self) -> Path:
        """What was sent and passed the guard, each in a folder named by its digest."""
        return self.folder / "bundles"

    @property
    def states(self) -> Path:
        """The public state of each submission."""
        return self.folder / "submissions"

    @property
    def site(self) -> Path:
        return self.folder / "site"
