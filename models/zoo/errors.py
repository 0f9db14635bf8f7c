"""What the folder's modules raise."""


class PairError(Exception):
    """The pair cannot be used; the message is one line that says why."""
