"""The service's database: SQLite in its folder, or any other by URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlmodel import Session, SQLModel, create_engine

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.service.settings import Settings

PATIENCE = 30
"""Seconds that a writer waits for another one."""


class Database:
    """Sessions that read, and sessions that write: all of it, or nothing."""

    def __init__(self, settings: Settings) -> None:
        """Opens it, and makes missing tables. Raises UserError where it cannot be reached, and without its driver."""
        from robustbench_rkhs.service import submission, token  # noqa: F401  # their tables are made below

        url = settings.database_url
        self.is_sqlite = url.startswith("sqlite:")
        if url.startswith(("postgresql:", "postgresql+psycopg:")):
            require("psycopg", "postgresql", "a database at postgresql://")
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
            more: dict[str, Any] = {"connect_args": {"timeout": PATIENCE}} if self.is_sqlite else {"pool_pre_ping": True}
            self.engine = create_engine(url, **more)
            if self.is_sqlite:
                event.listen(self.engine, "connect", _prepare)
                event.listen(self.engine, "begin", _begin)
            SQLModel.metadata.create_all(self.engine)
        except (ArgumentError, SQLAlchemyError, ImportError, OSError) as error:
            raise UserError(f"the service's database cannot be opened: {cause(error)}") from None

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Context manager: a session whose objects stay readable after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Context manager: a transaction, committed at the end, rolled back where something is raised."""
        with Session(self.engine.execution_options(writes=True), expire_on_commit=False) as session, session.begin():
            yield session


def _prepare(connection: Any, _: Any) -> None:
    """Readers never wait for the writer (WAL), and what was committed survives a power cut."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Any) -> None:
    """A writer takes the lock at its start: one that read first could not be given it later."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
