"""Door to `segtrain find-batch`: see segtrain/cli/find_batch.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["find_batch", *sys.argv[1:]]))
