"""Tokens: what they allow, and that nothing but an untouched, timely one is taken."""

import base64
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc.security import Cookie, Token, TokenError, check_token, make_token

COOKIE = Cookie("0123456789abcdef0123456789abcdef")
NODE = "a@127.0.0.1"
NOW = 1_700_000_000.0
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def refusal(text: str, *, cookie: Cookie = COOKIE, node: str = NODE, now: float = NOW) -> str:
    """The reason for which a token is refused."""
    with pytest.raises(TokenError) as caught:
        check_token(cookie, text, node=node, now=now)
    assert str(caught.value) == "The token was refused."
    return caught.value.reason


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: bytes, version: str = "g1") -> str:
    """A token with any claims, signed by somebody who knows the cookie."""
    body = f"{version}.{encoded(claims)}"
    key = hmac.digest(COOKIE.key, b"genrpc/1 token key", "sha256")
    return f"{body}.{encoded(hmac.digest(key, body.encode(), 'sha256'))}"


def claims(**changes: object) -> bytes:
    whole = {"allow": [], "aud": "", "exp": NOW + 1.5, "id": "0", "iss": "", **changes}
    return json.dumps(whole).encode()


# ---------------------------------------------------------------- good tokens


def test_token_says_what_it_was_made_with() -> None:
    text = make_token(
        COOKIE, ttl=60, allow=["math.*", "m:f"], audience=NODE, issuer="b@127.0.0.1", now=NOW
    )
    token = check_token(COOKIE, text, node=NODE, now=NOW)
    assert token == Token("b@127.0.0.1", NODE, NOW + 60, ("math.*", "m:f"), token.identity)


def test_token_lives_ten_minutes_unless_told() -> None:
    text = make_token(COOKIE, now=NOW)
    assert check_token(COOKIE, text, node=NODE, now=NOW + 599.9).expires == NOW + 600


def test_token_is_one_url_safe_word_of_three_parts() -> None:
    text = make_token(COOKIE, allow=["módulo.*"], issuer="ü", now=NOW)
    assert set(text) <= set(ALPHABET + ".")
    assert text.startswith("g1.")
    assert text.count(".") == 2


def test_token_without_audience_is_good_at_every_node_of_the_cookie() -> None:
    text = make_token(COOKIE, now=NOW)
    for node in (NODE, "b@127.0.0.1"):
        assert check_token(COOKIE, text, node=node, now=NOW).audience == ""


def test_identity_names_the_token_without_being_it() -> None:
    first, second = (make_token(COOKIE, now=NOW) for _ in range(2))
    identities = {
        check_token(COOKIE, text, node=NODE, now=NOW).identity for text in (first, second)
    }
    assert len(identities) == 2
    assert all(len(identity) == 12 and identity not in first + second for identity in identities)


def test_every_token_key_differs_from_the_handshakes() -> None:
    text = make_token(COOKIE, now=NOW)
    body, _, _ = text.rpartition(".")
    assert refusal(f"{body}.{encoded(hmac.digest(COOKIE.key, body.encode(), 'sha256'))}") == "proof"


@given(
    st.floats(1e-3, 1e9),
    st.lists(st.sampled_from(["*", "math.*", "math:sqrt", "p.q:C.m", "p.q.f"]), max_size=5),
    st.text(max_size=20),
)
def test_any_token_that_can_be_made_is_taken(ttl: float, allow: list[str], issuer: str) -> None:
    text = make_token(COOKIE, ttl=ttl, allow=allow, issuer=issuer, now=NOW)
    token = check_token(COOKIE, text, node=NODE, now=NOW)
    assert (token.allow, token.issuer) == (tuple(allow), issuer)


# ---------------------------------------------------------------- refused tokens


def test_expired_token_is_refused() -> None:
    text = make_token(COOKIE, ttl=2, now=NOW)
    assert refusal(text, now=NOW + 2) == "expired"


def test_token_for_another_node_is_refused() -> None:
    text = make_token(COOKIE, audience="b@127.0.0.1", now=NOW)
    assert refusal(text) == "audience"


def test_token_of_another_cookie_is_refused() -> None:
    text = make_token(Cookie("f" * 32), now=NOW)
    assert refusal(text) == "proof"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "g1..",
        "Bearer",
        "a.b.c",
        "g1.e30.",
        "g1",
        "g1.e30",
        "g1.e30.AA.AA",
        "\uff471.e30.AA",
    ],
)
def test_invented_token_is_refused(text: str) -> None:
    refusal(text)


def test_every_altered_character_is_refused() -> None:
    """The last character too, of which some changes decode to the same bytes."""
    text = make_token(COOKIE, now=NOW)
    for place in range(len(text)):
        for letter in ALPHABET if place in (len(text) - 1, text.rindex(".") - 1) else "Ax.":
            if text[place] != letter:
                refusal(text[:place] + letter + text[place + 1 :])


def test_every_truncation_and_addition_is_refused() -> None:
    text = make_token(COOKIE, now=NOW)
    for length in range(len(text)):
        refusal(text[:length])
        refusal(text[length + 1 :])
    for end in ("=", "A", "AAAA", "\n", " ", "."):
        refusal(text + end)


@pytest.mark.parametrize("change", [("-", "+"), ("_", "/")])
def test_the_other_base64_alphabet_is_refused(change: tuple[str, str]) -> None:
    text = signed(claims(iss="~" * 30 + "ÿ>?" * 20))
    while change[0] not in text:
        text = make_token(COOKIE, now=NOW)
    check_token(COOKIE, text, node=NODE, now=NOW)
    assert refusal(text.replace(*change)) in ("format", "proof")


def test_other_version_is_refused_even_if_signed() -> None:
    assert refusal(signed(claims(), version="g2")) == "version"


def test_size_limit_is_4_kib() -> None:
    """No token has exactly 4096 bytes: base64 jumps from 4095 to 4097 here."""
    fitting = claims()
    while len(signed(fitting + b" ")) <= 4096:
        fitting += b" "
    assert len(signed(fitting)) == 4095
    check_token(COOKIE, signed(fitting), node=NODE, now=NOW)
    assert refusal(signed(fitting + b" ")) == "size"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 2900,
        claims(exp=int(NOW) + 9),
        claims(exp=float("nan")),
        claims(exp=float("inf")),
        claims(exp=str(NOW)),
        claims(allow="*"),
        claims(allow=[1]),
        claims(aud=None),
        claims(pickle=True),
    ],
    ids=lambda data: data[:60],
)
def test_signed_nonsense_is_refused(data: bytes) -> None:
    assert refusal(signed(data)) == "claims"


def test_cut_off_claims_are_refused_before_they_are_parsed() -> None:
    assert refusal("g1.A.A") == "format"


@given(st.text(max_size=200))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    refusal(text)
    refusal("g1." + text)


# ---------------------------------------------------------------- making


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_impossible_ttl_raises_value_error(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        make_token(COOKIE, ttl=ttl, now=NOW)


@pytest.mark.parametrize("ttl", [True, "60", None])
def test_ttl_that_is_no_number_raises_type_error(ttl: object) -> None:
    with pytest.raises(TypeError, match="ttl"):
        make_token(COOKIE, ttl=ttl, now=NOW)  # type: ignore[arg-type]  # the mistake tested


@pytest.mark.parametrize(
    "entry", ["", "math", ".*", "math.", "ma*.sqrt", "a b.c", "m:a.b.c", "m:f:g", "m:", "m.f?", 5]
)
def test_allow_entry_that_could_never_match_is_refused(entry: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        make_token(COOKIE, allow=[entry], now=NOW)  # type: ignore[list-item]  # the mistake tested


def test_allow_list_given_as_one_text_is_refused() -> None:
    with pytest.raises(TypeError, match="sequence"):
        make_token(COOKIE, allow="math.*", now=NOW)


def test_allow_list_that_is_too_long_for_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="shorten its allow list"):
        make_token(COOKIE, allow=["module.function"] * 300, now=NOW)


# ---------------------------------------------------------------- the allow list


def allowing(*allow: str) -> Token:
    text = make_token(COOKIE, allow=allow, now=NOW)
    return check_token(COOKIE, text, node=NODE, now=NOW)


@pytest.mark.parametrize(
    ("entry", "module", "function"),
    [
        ("*", "os", "_exit"),
        ("math.*", "math", "sqrt"),
        ("math:*", "math", "sqrt"),
        ("math.*", "math", "Class.method"),
        ("math.sqrt", "math", "sqrt"),
        ("math:sqrt", "math", "sqrt"),
        ("math.is*", "math", "isqrt"),
        ("pkg.sub.*", "pkg.sub", "f"),
        ("pkg.sub.f", "pkg.sub", "f"),
        ("pkg:Class.method", "pkg", "Class.method"),
        ("pkg:Class.*", "pkg", "Class.method"),
        ("pkg:_private", "pkg", "_private"),
    ],
)
def test_allow_entry_matches(entry: str, module: str, function: str) -> None:
    assert allowing(entry).allows(module, function)
    assert allowing("other.f", entry).allows(module, function)


@pytest.mark.parametrize(
    ("entry", "module", "function"),
    [
        ("math.*", "os", "getcwd"),
        ("math.*", "math.deeper", "f"),
        ("math.*", "mathx", "f"),
        ("math.*", "Math", "sqrt"),
        ("math.*", "math ", "sqrt"),
        ("math.*", "math\0", "sqrt"),
        ("math.*", "\uff4dath", "sqrt"),
        ("math.*", "math", "_private"),
        ("math.*", "math", "__loader__.load_module"),
        ("math.*", "math", "Class._private"),
        ("math.sqrt", "math", "isqrt"),
        ("math.sqrt", "math", "sqrt\n"),
        ("math.sqrt", "math.sqrt", "f"),
        ("math.is*", "math", "sqrt"),
        ("pkg.sub.*", "pkg.sub.deeper", "f"),
        ("pkg.sub.*", "pkg", "sub.f"),
        ("pkg:Class.*", "pkg.Class", "f"),
        ("pkg:Class.*", "pkg", "Class"),
    ],
)
def test_allow_entry_does_not_match(entry: str, module: str, function: str) -> None:
    assert not allowing(entry).allows(module, function)


def test_empty_allow_list_is_no_further_limit() -> None:
    assert allowing().allows("os", "getcwd")
