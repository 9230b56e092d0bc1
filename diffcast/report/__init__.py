"""Reports of one evaluation or of several, each a self-contained HTML page."""

from diffcast.report.report import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
