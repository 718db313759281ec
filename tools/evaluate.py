"""Door to `segtrain evaluate`: see segtrain/cli/evaluate.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
