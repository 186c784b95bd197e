"""Parts exchanged through an object store by machines that share no disk: put whole, under the names that their content has."""

from pathlib import Path

from robustbench_rkhs.runtime.object_store import ObjectStore, RemoteClaim


class Exchange:
    """The parts of FOLDER, beside the same files below a URL. What is read is always the local copy, by its seal.

    A part that another machine wrote is fetched once. One whose seal is broken is set aside here, computed again and put in its
    place there.
    """

    def __init__(self, store: ObjectStore, name: str, folder: Path) -> None:
        """`name`: of the evaluation below the URL. `folder`: of its parts on this machine."""
        self.store, self.name, self.folder = store, name, folder
        self._fetched = set[str]()

    def put(self, path: Path) -> None:
        """Store a part that was written here, after the images beside it."""
        for one in (path.with_suffix(".npz"), path):
            if one.is_file():
                self.store.put(one, self._named(one))
        self._fetched.add(self._named(path))

    def fetch(self, path: Path) -> None:
        """The part of this path, if it is there and not here."""
        name = self._named(path)
        if name in self._fetched or path.is_file():
            return
        images = path.with_suffix(".npz")
        self.store.fetch(self._named(images), images)
        if self.store.fetch(name, path):
            self._fetched.add(name)

    def fetch_all(self, folder: Path) -> None:
        """Every part of a folder below FOLDER that is there and not here."""
        for name in self.store.names(self._named(folder)):
            if name.endswith(".parquet"):
                self.fetch(folder / name)

    def claimed(self, job: str) -> RemoteClaim | None:
        """The claim on a job, or None where another machine computes it."""
        return self.store.claimed(f"{self.name}/locks/{job}")

    def _named(self, path: Path) -> str:
        return f"{self.name}/parts/{path.relative_to(self.folder).as_posix()}"
