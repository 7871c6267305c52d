"""Run the command line as ``python -m fedleak``."""

from fedleak.cli.app import program

program()
