"""What commands take on their command line."""

import argparse


def fraction(text: str) -> float:
    """A number from 0 to 1. Raises ValueError and ArgumentTypeError, of which argparse makes a line."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
