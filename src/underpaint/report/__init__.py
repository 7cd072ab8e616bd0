"""One self-contained HTML page for a run: what was trained, how it went, what came out."""

from underpaint.report.page import build as build
from underpaint.report.page import follow as follow
from underpaint.report.page import live as live
