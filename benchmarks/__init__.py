"""A package by name: opacus installs another `benchmarks`, which would be found instead."""
