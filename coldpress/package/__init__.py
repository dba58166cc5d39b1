"""Checkpoint → OCI image and the files that deploy it, for one platform."""

from coldpress.package.stage import Packaged, PackageOptions, package, plan

__all__ = ["PackageOptions", "Packaged", "package", "plan"]
