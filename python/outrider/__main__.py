"""``python -m outrider`` is the console program."""

from outrider.cli import main

main()
