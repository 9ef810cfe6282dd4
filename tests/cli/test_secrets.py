"""`genrpc cookie`, `cert` and `token`."""

import json
import stat
import time
from pathlib import Path

import pytest

from genrpc import security
from genrpc.settings import Settings

SECRET = "a secret of some length"


# ---------------------------------------------------------------- cookie


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config directory without a cookie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_cookie_is_made_if_it_is_missing(cli, config):
    done = cli("cookie", "--path")
    path = config / "genrpc" / "cookie"
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_cookie_is_shown_only_when_asked_for(cli, config):
    plain, as_json = cli("cookie"), cli("cookie", "--json")
    text = (config / "genrpc" / "cookie").read_text().strip()
    assert "safe" in plain.stdout
    assert json.loads(as_json.stdout)["safe"] is True
    for done in (plain, as_json, cli("cookie", "-vv")):
        assert text not in done.stdout + done.stderr
    assert cli("cookie", "--show").stdout == f"{text}\n"
    assert json.loads(cli("cookie", "--show", "--json").stdout)["cookie"] == text


def test_cookie_that_others_can_read_ends_with_78(cli, config):
    cli("cookie")
    path = config / "genrpc" / "cookie"
    path.chmod(0o640)
    done = cli("cookie")
    assert (done.returncode, done.stdout) == (78, "")
    assert f"chmod 600 {path}" in done.stderr


def test_cookie_of_a_setting_is_told_by_its_source(cli):
    done = cli("cookie", GENRPC_COOKIE=SECRET)
    assert "environment variable GENRPC_COOKIE" in done.stdout
    assert SECRET not in done.stdout
    assert "source" in json.loads(cli("cookie", "--json", GENRPC_COOKIE=SECRET).stdout)
    assert cli("cookie", "--path", GENRPC_COOKIE=SECRET).returncode == 2


# ---------------------------------------------------------------- cert


def test_cert_makes_an_authority_and_a_certificate_for_a_node(cli, tmp_path):
    made = cli("cert", "ca", "--dir", tmp_path)
    assert made.returncode == 0
    assert made.stdout.split() == [str(tmp_path / "ca.crt"), str(tmp_path / "ca.key")]
    made = cli("cert", "new", "a", "--dir", tmp_path, "--host", "db.example.org")
    assert made.returncode == 0
    settings = dict(line.split(" = ") for line in made.stdout.splitlines())
    tls = security.load_tls(Settings(**{key: json.loads(v) for key, v in settings.items()}))
    found = security.identities(tls.certificate)
    assert security.names_node(found, "a@127.0.0.1")
    assert "db.example.org" in found.dns


def test_cert_tells_in_json_where_the_files_are(cli, tmp_path):
    cli("cert", "ca", "--dir", tmp_path / "ca")
    words = ["--dir", tmp_path, "--ca-dir", tmp_path / "ca", "--days", 3, "--json"]
    made = json.loads(cli("cert", "new", "a@127.0.0.1", *words).stdout)
    assert Path(made["certificate"]).exists()
    assert stat.S_IMODE(Path(made["key"]).stat().st_mode) == 0o600
    assert made["expires"].endswith("+00:00")


def test_cert_overwrites_nothing(cli, tmp_path):
    cli("cert", "ca", "--dir", tmp_path)
    done = cli("cert", "ca", "--dir", tmp_path)
    assert done.returncode == 2
    assert "not overwritten" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ca", "a"], "takes no node's name"),
        (["new"], "a node's name is wanted"),
        (["new", "a"], "no certificate authority"),
    ],
    ids=str,
)
def test_cert_says_what_is_missing(cli, tmp_path, words, told):
    done = cli("cert", *words, "--dir", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_cert_refuses_what_is_no_host(cli, tmp_path):
    cli("cert", "ca", "--dir", tmp_path)
    assert cli("cert", "new", "a", "--dir", tmp_path, "--host", "a b").returncode == 2


# ---------------------------------------------------------------- token


def claims(text, node="a@127.0.0.1"):
    cookie = security.load_cookie(Settings())
    return security.check_token(cookie, text.strip(), node=node, now=time.time())


def test_token_lives_ten_minutes_and_allows_what_the_policy_admits(cli):
    done = cli("token")
    assert len(done.stdout.split()) == 1
    token = claims(done.stdout)
    assert token.expires - time.time() == pytest.approx(600, abs=30)
    assert token.allow == ()


def test_token_can_be_limited(cli):
    done = cli("token", "--ttl", "90", "--allow", "math.*", "--allow", "jobs.f", "--node", "b")
    token = claims(done.stdout, "b@127.0.0.1")
    assert token.expires - time.time() == pytest.approx(90, abs=30)
    assert token.allow == ("math.*", "jobs.f")
    with pytest.raises(security.TokenError):
        claims(done.stdout)


def test_token_is_told_in_json_with_its_limits(cli):
    made = json.loads(cli("token", "--ttl", "500ms", "--allow", "math.*", "--json").stdout)
    assert made.pop("token").startswith("g1.")
    assert made == {"expires_in": 0.5, "allow": ["math.*"]}


@pytest.mark.parametrize("words", [["--allow", "math..f"], ["--node", "a:5"]], ids=str)
def test_token_that_could_never_work_is_refused(cli, words):
    done = cli("token", *words)
    assert (done.returncode, done.stdout) == (2, "")
