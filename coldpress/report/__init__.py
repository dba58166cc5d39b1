"""Evaluations → one page that compares them: HTML, Markdown, JSON and the figures."""

from .compare import Row, rows
from .stage import Reported, ReportOptions, plan, report

__all__ = ["ReportOptions", "Reported", "Row", "plan", "report", "rows"]
