"""A module of a whitelist, with everything in it that must not be reached through it."""

import functools
import os
import subprocess
from os import system
from subprocess import check_output as run_it

import canary_box

__all__ = [
    "Box",
    "PublicClass",
    "add",
    "box",
    "call_it",
    "partial_system",
    "reduce",
    "run_it",
    "system",
]

reduce = functools.reduce
partial_system = functools.partial(os.system)
Box = canary_box.Box
box = canary_box.Box()


def add(a, b):
    return a + b


def call_it(function, *args):
    """What an unwary author offers: whoever can send a function can have it called."""
    return function(*args)


def _private():
    canary_box.open_it()


def not_in_all():
    canary_box.open_it()


class PublicClass:
    attribute = system

    def __init__(self, value=0):
        self.value = value

    @property
    def prop(self):
        canary_box.open_it()

    @staticmethod
    def double(value):
        return 2 * value

    def _hidden(self):
        canary_box.open_it()

    class Inner:
        @staticmethod
        def reach():
            canary_box.open_it()


def __getattr__(name):
    if name == "dynamic":
        return subprocess.run
    raise AttributeError(name)
