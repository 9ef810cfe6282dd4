"""What a caller may run, as it is listed: what is in it, what is left out, and how it is shown."""

import sys
import types

import pytest

from genrpc import catalogue
from genrpc.policy import Policy

SOURCE = '''
"""A module to be listed."""
from math import sqrt

def plain(a, *, b=2):
    """Take a keyword argument.

    And much more.
    """

async def coroutine(x: int) -> "str":
    pass

def _private():
    pass

class Kit:
    """A class."""
    @staticmethod
    def twice(x):
        """Double."""
    @classmethod
    def named(cls, name):
        pass
    @staticmethod
    def _hidden():
        pass
    def method(self):
        pass

class _Private:
    @staticmethod
    def twice(x):
        pass

class Loud:
    def __repr__(self):
        raise RuntimeError("no repr")

class Meta(type):
    def __getattribute__(cls, name):
        if name == "odd":
            raise RuntimeError("not now")
        return super().__getattribute__(name)

class Odd(metaclass=Meta):
    @staticmethod
    def odd():
        pass

def loud(value=Loud()):
    pass

def addressed(value=object()):
    pass

def long(value="x" * 1000):
    pass

def undocumented():
    pass
undocumented.__doc__ = 5

def strange():
    pass
strange.__doc__ = "\\ud800 stays readable."

value = 42
'''


def nothing_left_out(module, function):
    return True


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "listed_here.py").write_text(SOURCE)
    yield "listed_here"
    sys.modules.pop("listed_here", None)


def listed(policy, prefix="", **more):
    found, after = [], ("", "")
    while after is not None:
        page, after = catalogue.page_of(
            policy, nothing_left_out, prefix=prefix, **{"after": after, **more}
        )
        found += page
    return {f"{each.module}.{each.function}": each for each in found}


def test_a_whitelist_is_imported_and_listed_whole(module):
    assert module not in sys.modules
    names = set(listed(Policy("whitelist", [module])))
    functions = {"plain", "coroutine", "loud", "addressed", "long", "undocumented", "strange"}
    methods = {"Kit.twice", "Kit.named"}
    always = {"genrpc.node", "genrpc.ping"}
    assert names == always | {f"{module}.{name}" for name in functions | methods}


def test_single_functions_of_a_whitelist_may_be_imported_there(module):
    policy = Policy("whitelist", [f"{module}:sqrt", f"{module}:Kit", f"{module}:Kit.twice"])
    names = set(listed(policy, module))
    assert names == {f"{module}.sqrt", f"{module}.Kit", f"{module}.Kit.twice"}


def test_a_module_of_the_whitelist_that_cannot_be_imported_is_logged(caplog, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "leaves_at_import.py").write_text("raise SystemExit(1)")
    policy = Policy("whitelist", ["no_such_module", "leaves_at_import"])
    assert set(listed(policy)) == {"genrpc.node", "genrpc.ping"}
    assert "no_such_module" in caplog.text
    assert "leaves_at_import" in caplog.text


def test_the_prefix_spares_imports(module, tmp_path):
    (tmp_path / "trap.py").write_text("raise AssertionError('imported')")
    policy = Policy("whitelist", [module, "trap"])
    assert set(listed(policy, f"{module}.p")) == {f"{module}.plain"}
    assert set(listed(policy, "listed")) >= {f"{module}.plain"}
    assert module in sys.modules


def test_without_a_whitelist_imported_modules_are_listed(module):
    policy = Policy("disabled", [])
    assert not listed(policy, f"{module}.")
    __import__(module)
    names = set(listed(policy, f"{module}."))
    assert {f"{module}.plain", f"{module}.Kit.twice", f"{module}.Kit.named"} <= names
    for name in ("sqrt", "_private", "value", "Kit", "Kit.method", "Kit._hidden", "Odd.odd"):
        assert f"{module}.{name}" not in names
    assert f"{module}.plain" in listed(policy)


def test_a_blacklist_is_left_out(module):
    __import__(module)
    policy = Policy("blacklist", [f"{module}:plain", "os"])
    names = set(listed(policy, module))
    assert f"{module}.plain" not in names
    assert f"{module}.coroutine" in names
    assert not listed(policy, "os.")


def test_the_standard_library_is_listed_if_one_asks_for_it():
    policy = Policy("disabled", [])
    assert "json.dumps" not in listed(policy)
    assert "json.dumps" in listed(policy, "json.")
    assert "genrpc.errors.error_of" not in listed(policy)
    assert "genrpc.errors.error_of" in listed(policy, "genrpc.errors.")


def test_what_is_no_module_or_has_no_name_is_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "$odd.name", types.ModuleType("$odd.name"))
    monkeypatch.setitem(sys.modules, "oddly_none", None)
    alias = types.ModuleType("another_name")
    alias.function = test_what_is_no_module_or_has_no_name_is_passed_over
    monkeypatch.setitem(sys.modules, "odd_alias", alias)
    names = listed(Policy("disabled", []))
    assert not any("odd" in name.partition(".")[0] for name in names)


def test_a_module_whose_attributes_raise_is_listed_without_them(monkeypatch):
    class Raising(types.ModuleType):
        def __getattribute__(self, name):
            if name == "broken":
                raise RuntimeError("not now")
            return super().__getattribute__(name)

    module = Raising("odd_module")
    exec("def broken(): pass\ndef whole(): pass", vars(module))
    monkeypatch.setitem(sys.modules, "odd_module", module)
    assert set(listed(Policy("disabled", []), "odd_module")) == {"odd_module.whole"}


def test_a_policy_that_stumbles_over_a_function_leaves_it_out(module, monkeypatch):
    admits = Policy.admits

    def stumbling(self, module, name, function, target):
        if function == "plain":
            raise RuntimeError("an attribute ran code")
        return admits(self, module, name, function, target)

    monkeypatch.setattr(Policy, "admits", stumbling)
    names = listed(Policy("whitelist", [module]), module)
    assert f"{module}.plain" not in names
    assert f"{module}.coroutine" in names


def test_signatures_and_summaries_are_one_line_each(module):
    found = listed(Policy("whitelist", [module]), module)
    assert found[f"{module}.plain"].signature == "(a, *, b=2)"
    assert found[f"{module}.plain"].summary == "Take a keyword argument."
    assert found[f"{module}.coroutine"].signature == "(x: int) -> 'str'"
    assert found[f"{module}.coroutine"].summary == ""
    assert found[f"{module}.Kit.named"].signature == "(name)"
    assert found[f"{module}.loud"].signature == "(...)"
    assert found[f"{module}.addressed"].signature == "(value=<object object>)"
    assert len(found[f"{module}.long"].signature) == catalogue.MAX_SIGNATURE
    assert found[f"{module}.long"].signature.endswith("…")
    assert found[f"{module}.undocumented"].summary == ""
    assert found[f"{module}.strange"].summary == "\\ud800 stays readable."


def test_pages_go_on_after_a_name(module):
    policy = Policy("whitelist", [module])
    whole = list(listed(policy))
    names, after = [], ("", "")
    while after is not None:
        page, after = catalogue.page_of(policy, nothing_left_out, after=after, size=2)
        assert len(page) <= 2
        names += [f"{each.module}.{each.function}" for each in page]
    assert names == whole


def test_a_callers_own_limits_hold():
    page, _ = catalogue.page_of(
        Policy("whitelist", ["math"]), lambda module, function: function == "sqrt"
    )
    assert [each.function for each in page] == ["sqrt"]
