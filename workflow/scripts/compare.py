"""Print what changed from one results folder to another: `make compare A=results B=other`. Not part of the workflow."""

import argparse
import sys

from dinoquant.errors import UserError
from dinoquant.report.compare import compare

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", help="results folder to start from")
    parser.add_argument("b", help="results folder to compare it with")
    folders = parser.parse_args()
    try:
        print(compare(folders.a, folders.b))
    except UserError as error:
        sys.exit(str(error))
