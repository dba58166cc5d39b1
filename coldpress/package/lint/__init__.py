"""Hold an image, ours or not, against what Lambda and Cloud Run refuse and docker does not."""

from coldpress.package.lint.verb import RULES, Linted, LintOptions, enforce, lines, lint

__all__ = ["RULES", "LintOptions", "Linted", "enforce", "lines", "lint"]
