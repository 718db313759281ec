"""Door to `segtrain benchmark`: see segtrain/cli/benchmark.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["benchmark", *sys.argv[1:]]))
