"""The site: static pages from the tables of verdicts alone, which open from the file system and from any web host."""

from robustbench_rkhs.site.assets import check_installed

check_installed()  # before modules that import them: what is missing is named with the command that installs it

from robustbench_rkhs.site.build import SiteBuilt, build_site  # noqa: E402

__all__ = ["SiteBuilt", "build_site"]
