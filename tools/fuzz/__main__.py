"""`python -m tools.fuzz --cases 10000`: damaged pictures through the real upload decoder, and the result.

Exit code 0 where every promise held, 1 where one was broken, 2 for a wrong command line. The same seed draws the same
cases; `--show n --seed s` writes the bytes of one of them to the standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
from collections.abc import Sequence

from tools.fuzz.campaign import run_campaign
from tools.fuzz.damage import draw_case
from tools.fuzz.report import as_json, format_rows
from tools.fuzz.seeds import make_seeds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="draws the cases (a random one)")
    parser.add_argument("--show", type=int, default=None, help="the bytes of one case, and nothing else")
    parser.add_argument("--json", action="store_true", help="rows of JSON on the standard output")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if options.cases < 1:
        parser.error("at least one case is needed")
    if options.show is not None:
        sys.stdout.buffer.write(draw_case(seed, options.show, make_seeds())[1])
        return 0
    logging.basicConfig(level=logging.ERROR)
    outcome = asyncio.run(run_campaign(seed, options.cases, lambda text: print(text, file=sys.stderr, flush=True)))
    print("\n".join(format_rows(outcome)), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print("\n".join(json.dumps(row) for row in as_json(outcome)))
    return 0 if outcome.is_satisfied else 1


if __name__ == "__main__":
    sys.exit(main())
