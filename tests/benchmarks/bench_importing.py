"""What `import dplearn` costs beside the import of what it stands on: each in a fresh process."""

import subprocess
import sys


def importing(code: str):
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def measure(report, quick, pairs):
    for name in ("torch", "torch, transformers"):
        report.ratio(f"dplearn/{name}", importing("import dplearn"), importing(f"import {name}"), pairs)
