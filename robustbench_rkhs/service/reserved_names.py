"""Names that nobody can send a model under: of the models that come with the package, and of the host's own recipes."""

from robustbench_rkhs.nodes.paths import models_folder
from robustbench_rkhs.nodes.shipped import RECIPES
from robustbench_rkhs.service.bundles import Bundle
from robustbench_rkhs.service.lifecycle import NameTaken
from robustbench_rkhs.submission.look_alikes import looks_like


def check_reserved(bundle: Bundle) -> None:
    """Raises NameTaken where a checkpoint bears, or its name reads like, a reserved name: before it is evaluated, not after."""
    if bundle.kind != "checkpoint":
        return
    name, own = bundle.name, {path.stem for path in models_folder().glob("*.yaml")}
    if name in RECIPES:
        raise NameTaken(f"{name!r} is the name of a model that comes with the package: choose another")
    if name in own:
        raise NameTaken(f"{name!r} is the name of a model of whoever runs this service: choose another")
    if other := looks_like(name, RECIPES | own):
        raise NameTaken(f"{name!r} reads like {other!r}, which is taken: choose another")
