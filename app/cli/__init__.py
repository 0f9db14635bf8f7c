"""The command line `dynpose`, or `python -m app.cli`: annotate pictures, turn a server's split, watch a server."""
