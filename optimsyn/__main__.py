"""`python -m optimsyn`: the command line, for where its script is not on the path."""

from optimsyn.cli import main

main()
