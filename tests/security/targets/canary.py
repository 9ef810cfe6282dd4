"""What must never be imported, and never sing: whoever does leaves a trace in this process."""

import os

os.environ["CANARY"] = "imported"


def sing(*args, **kwargs):
    os.environ["CANARY"] = "sung"
