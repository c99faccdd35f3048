"""What `im bench` measures: a module for each benchmark, with a function `run_` and its name."""
