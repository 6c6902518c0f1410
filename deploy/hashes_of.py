"""Write the packages of a pip report as requirements with hashes (see `deploy/hashes`).

python deploy/hashes_of.py REPORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def requirements(report: dict[str, Any]) -> list[str]:
    """Return a line for each package, with a mark that says whether it is a wheel.

    Raises:
        ValueError: the index gave no hash for a package.
    """
    lines = []
    for item in report["install"]:
        about, source = item["metadata"], item["download_info"]
        archive = source.get("archive_info")
        if archive is None:  # this project itself
            continue
        digest = archive.get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{about['name']}: no SHA-256 from the index")
        # Addresses may carry names of mirrors and keys: only the kind of the file is kept.
        kind = "wheel" if source["url"].split("#")[0].endswith(".whl") else "source"
        lines.append(f"{about['name']}=={about['version']} --hash=sha256:{digest}  # {kind}")
    return sorted(lines, key=str.lower)


if __name__ == "__main__":
    print("\n".join(requirements(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
