"""The one step that setup.cfg cannot say: a wheel carries models/, the checkpoints that are small enough, and pages of docs/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKPOINTS = ("digits_conv", "digits_gloro", "digits_mlp", "digits_sandwich", "digits_smoothed")
"""Shipped whole: 0.8 MB."""
WITHOUT_WEIGHTS = ("robust_vgg", "cifar10_radius")
"""Shipped without model.safetensors (up to 20 MB): their cards and digests."""
PAGES = ("glossary.md", "trust.md")
"""Pages of docs/ that the site shows."""


class WithModels(build_py):
    """Copies models/, checkpoints/ and pages of docs/ into the package, where `nodes/paths.py` looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they lie beside the package
        shipped = Path(self.build_lib) / "robustbench_rkhs" / "_shipped"
        shutil.rmtree(shipped, ignore_errors=True)
        shutil.copytree("models", shipped / "models")
        (shipped / "docs").mkdir()
        for page in PAGES:
            shutil.copyfile(f"docs/{page}", shipped / "docs" / page)
        for name in CHECKPOINTS + WITHOUT_WEIGHTS:
            left = ["model.safetensors"] if name in WITHOUT_WEIGHTS else []
            left += ["last.safetensors", "resume.pt", "*.part"]
            shutil.copytree(f"checkpoints/{name}", shipped / "checkpoints" / name, ignore=shutil.ignore_patterns(*left))


setup(cmdclass={"build_py": WithModels})
