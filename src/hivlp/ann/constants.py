"""Constants of the approximate index, as its C has them: read from ``c/constants.h``, the one place that holds them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

HEADER: Final = Path(__file__).with_name("c") / "constants.h"


def read_constants(text: str) -> dict[str, str]:
    """Literals of a C header's ``#define NAME number`` lines, by name."""
    return dict(re.findall(r"^#define (\w+) ([-+.\w]+)", text, re.MULTILINE))


CONSTANTS: Final = read_constants(HEADER.read_text(encoding="ascii"))
LIST_LANES: Final = int(CONSTANTS["LIST_LANES"])
CODE_LANES: Final = int(CONSTANTS["CODE_LANES"])
NO_ROW: Final = int(CONSTANTS["NO_ROW"], 16)
NO_NORM: Final = int(CONSTANTS["NO_NORM"])
MAX_DIMS: Final = int(CONSTANTS["MAX_DIMS"])
MAX_BOUND_DIMS: Final = int(CONSTANTS["MAX_BOUND_DIMS"])
REFINE_STEP: Final = float(CONSTANTS["REFINE_STEP"])
COARSE_STEP: Final = float(CONSTANTS["COARSE_STEP"])
