"""The one failure that bad input may cause, in one line."""

from pathlib import Path


class InputError(Exception):
    """Bad input: `outrider: error E_CODE: WHERE: WHAT: found ..., expected ...`; the console program exits with 2.

    `where` is a file or folder, `what` the tensor, domain, field or item in it.
    """

    exit_code = 2

    def __init__(self, code: str, where: Path | str, what: str, found: str, expected: str) -> None:
        self.code, self.where, self.what, self.found, self.expected = code, str(where), what, found, expected
        super().__init__(f"outrider: error {code}: {where}: {what}: found {found}, expected {expected}")
