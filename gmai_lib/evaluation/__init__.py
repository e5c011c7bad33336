"""Benchmarks, answer scoring and honest tables. Paper: section 5."""
