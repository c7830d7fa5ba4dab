"""The seeds of samples, without torch: who plans and writes samples need not import it."""

import hashlib


def row_seed(base_seed: int, label: int, index: int, attempt: int = 0) -> int:
    """The seed of sample ``index`` of class ``label``: 63 bits, a pure function of its arguments."""
    digest = hashlib.sha256(f"{base_seed}/{label}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
