"""The site: static pages from the tables of verdicts alone, which open from the file system and from any web host."""

from robustbench_rkhs.site.build import SiteBuilt, build_site

__all__ = ["SiteBuilt", "build_site"]
