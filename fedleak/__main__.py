"""Run the command line as ``python -m fedleak``."""

from fedleak.cli import program

program()
