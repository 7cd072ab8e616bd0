"""Readers of images, one module a container; `underpaint.data.source` asks them in turn."""
