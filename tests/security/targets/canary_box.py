"""Has something that must stay shut; it is imported by a whitelisted module, and not listed."""

import os


def open_it(*args, **kwargs):
    os.environ["CANARY"] = "opened"


class Box:
    def open(self, *args):
        open_it()

    def __call__(self, *args):
        open_it()

    @staticmethod
    def reach(*args):
        open_it()
