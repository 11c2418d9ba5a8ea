"""Claim: `import fedrag` takes at most 0.1 of the time of `import torch`.

Each import runs in a fresh interpreter, which times it from inside (so the start of Python counts for neither), and the
two alternate, so that whatever else the machine does falls on both. Prints JSON; fails when the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

from tqdm import tqdm

LIMIT = 0.1
TIMER = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"


def seconds(module: str) -> float:
    code = TIMER.format(module=module)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": round(low, 6), "median": round(median, 6), "q3": round(high, 6)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="interpreters per module (default: 11)")
    runs = parser.parse_args().runs
    for module in ("fedrag", "torch"):  # the files come into the page cache, and the byte code is written
        seconds(module)
    pairs = [(seconds("fedrag"), seconds("torch")) for _ in tqdm(range(runs), desc="pairs of imports", unit="pair")]
    ratio = quartiles([ours / theirs for ours, theirs in pairs])
    result = {
        "claim": f"import fedrag takes at most {LIMIT} of import torch",
        "holds": ratio["median"] <= LIMIT,
        "limit": LIMIT,
        "ratio": ratio,
        "fedrag_seconds": quartiles([ours for ours, _ in pairs]),
        "torch_seconds": quartiles([theirs for _, theirs in pairs]),
        "runs": runs,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
