"""Evaluation reports: one self-contained HTML page about an evaluation, or about several side by side."""

from diffcast.report.report import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
