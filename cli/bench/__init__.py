"""The benchmarks behind `im bench`: every figure is the median of rounds, beside a yardstick from the same rounds."""
