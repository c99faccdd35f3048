"""`python -m tests.house [--json] [--why]`: print the figures of the house; exit with 1 if one is above its aim."""

import argparse
import json
import sys
from dataclasses import asdict

from tests.house import figures
from tests.house.walks import walked


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.house", description="The figures of the house.")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument("--why", action="store_true", help="name what is behind each figure that is missed")
    options = parser.parse_args()
    measured = figures.of_source() + figures.of_walks(walked())
    if options.json:
        print(json.dumps([asdict(figure) for figure in measured]))
        return 0
    print(f"{'figure':52} {'now':>6} {'aim':>6}")
    for figure in measured:
        print(f"{figure.name:52} {figure.value:6} {figure.aim:6}{'' if figure.is_reached else '  missed'}")
        if options.why and not figure.is_reached:
            print(*(f"    {line}" for line in figure.because), sep="\n")
    return int(not all(figure.is_reached for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
