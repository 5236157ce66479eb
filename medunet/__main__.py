"""``python -m medunet`` is the same as ``medunet``."""

from medunet.cli.main import main

main()
