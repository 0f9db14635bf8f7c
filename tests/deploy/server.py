"""`python -m tests.deploy.server`: the service as `python -m app` runs it, with the arithmetic networks."""

import sys

import app.service
from app.__main__ import main
from tests.app.conftest import FakePair

app.service.load_pair = lambda manifest, *_: FakePair(manifest)
app.service.warm = lambda *_: None
sys.exit(main())
