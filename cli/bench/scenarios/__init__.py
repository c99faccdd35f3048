"""The benchmarks: each is a function named `run_` and its name."""
