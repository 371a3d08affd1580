import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from btray.errors import UserError
from btray.serve.auth import (
    ANONYMOUS,
    AuthConfig,
    Authenticator,
    Principal,
    Refused,
    require_auth_for,
)
from btray.serve.front import Front
from btray.serve.keys import KEY_PREFIX, Limits, create_key, revoke_key

NOW = time.time()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file of keys with one in it, and the keys of a provider of tokens."""
    folder = tmp_path_factory.mktemp("auth")
    signer = ed25519.Ed25519PrivateKey.generate()
    public = jwt.algorithms.OKPAlgorithm.to_jwk(signer.public_key(), as_dict=True)
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    key = create_key(folder / "keys.json", "ward", limits=Limits(requests_per_second=2, burst=3))
    config = AuthConfig(
        keys_file=str(folder / "keys.json"),
        jwks=str(folder / "jwks.json"),
        issuer="me",
        audience="btray",
        scope="classify",
    )
    return config, key, signer


@pytest.fixture(scope="module")
def authenticator(place):
    return Authenticator(place[0])


def token(signer, **changes):
    claims = {"iss": "me", "aud": "btray", "sub": "ward", "exp": NOW + 60, "scope": "classify"}
    return jwt.encode({**claims, **changes}, signer, "EdDSA")


def refusal(call, *arguments):
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value


def test_a_key_is_taken_from_either_header(authenticator, place):
    _, key, _ = place
    for headers in (
        (f"Bearer {key}", None),
        (f"bearer   {key} ", ""),
        (None, key),
        ("Basic x", key),
    ):
        principal = authenticator.authenticate(*headers, NOW)
        assert (principal.name, principal.kind) == ("ward", "key")
        assert principal.limits.burst == 3


def test_a_token_is_taken_and_is_not_the_key_of_its_name(authenticator, place):
    _, key, signer = place
    by_token = authenticator.authenticate(f"Bearer {token(signer)}", None, NOW)
    assert by_token == Principal("ward", "token")
    assert by_token != authenticator.authenticate(None, key, NOW)


def test_nothing_given_says_what_to_give(authenticator):
    for headers in (
        (None, None),
        ("", ""),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
    ):
        refused = refusal(authenticator.authenticate, *headers, NOW)
        assert refused.status == "unauthenticated"
        assert "Authorization: Bearer" in refused.message


def test_a_wrong_key_is_told_nothing_and_not_repeated(authenticator, place):
    _, key, _ = place
    messages = {
        refusal(authenticator.authenticate, None, wrong, NOW).message
        for wrong in (key[:-1], key + "x", KEY_PREFIX, "ward", "a.b.c", "x" * 20000)
    }
    assert messages == {"the API key or token is not valid"}


def test_a_token_without_the_scope_is_forbidden(authenticator, place):
    wrong = token(place[2], scope="other")
    refused = refusal(authenticator.authenticate, f"Bearer {wrong}", None, NOW)
    assert refused.status == "forbidden"
    assert refused.message == "the token lacks the scope classify"


def test_an_expired_token_is_unauthenticated(authenticator, place):
    refused = refusal(authenticator.authenticate, f"Bearer {token(place[2])}", None, NOW + 91)
    assert (refused.status, refused.message) == ("unauthenticated", "the token has expired")


def test_a_revoked_key_is_refused_a_second_later(tmp_path):
    clock = Clock()
    path = tmp_path / "keys.json"
    key = create_key(path, "a")
    authenticator = Authenticator(AuthConfig(keys_file=str(path)), clock)
    assert authenticator.authenticate(None, key, NOW).name == "a"
    revoke_key(path, "a")
    clock.now = 1.0
    assert refusal(authenticator.authenticate, None, key, NOW).status == "unauthenticated"


def test_keys_alone_take_no_tokens_and_tokens_alone_no_keys(place):
    config, key, signer = place
    keys = Authenticator(AuthConfig(keys_file=config.keys_file))
    tokens = Authenticator(config.model_copy(update={"keys_file": None}))
    assert refusal(keys.authenticate, f"Bearer {token(signer)}", None, NOW).status
    assert refusal(tokens.authenticate, None, key, NOW).status == "unauthenticated"


@given(header=st.binary(max_size=200), other=st.one_of(st.none(), st.text(max_size=50)))
def test_no_header_raises_anything_else(authenticator, header, other):
    text = header.decode("latin-1")
    for authorization in (text, f"Bearer {text}", f"Bearer {KEY_PREFIX}{text}"):
        with pytest.raises(Refused):
            authenticator.authenticate(authorization, other, NOW)


@given(parts=st.lists(st.text(st.characters(), max_size=80), min_size=3, max_size=3))
def test_nothing_that_looks_like_a_token_raises_anything_else(authenticator, parts):
    with pytest.raises(Refused):
        authenticator.authenticate("Bearer x" + ".".join(parts), None, NOW)


@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_claim_of_a_signed_token_raises_anything_else(authenticator, place, value):
    for name in ("exp", "nbf", "iat", "iss", "aud", "sub", "scope", "roles"):
        try:
            signed = token(place[2], **{name: value})
        except TypeError:
            continue  # PyJWT does not write it
        try:
            principal = authenticator.authenticate(f"Bearer {signed}", None, NOW)
        except Refused:
            continue
        assert isinstance(principal.name, str)


def test_the_rate_is_a_bucket_that_fills_again():
    clock = Clock()
    limits = Limits(requests_per_second=2, burst=3)
    authenticator = Authenticator(AuthConfig(limits=limits), clock)
    for _ in range(3):
        with authenticator.admit(ANONYMOUS):
            pass
    refused = refusal(enter, authenticator, ANONYMOUS)
    assert (refused.status, refused.retry_after_s) == ("rate", 0.5)
    clock.now = 0.5
    enter(authenticator, ANONYMOUS)
    assert refusal(enter, authenticator, ANONYMOUS).status == "rate"
    clock.now = 1000.0
    for _ in range(3):
        enter(authenticator, ANONYMOUS)
    assert refusal(enter, authenticator, ANONYMOUS).status == "rate"


def enter(authenticator, principal):
    with authenticator.admit(principal):
        pass


def test_a_slow_rate_lets_one_through_at_a_time():
    clock = Clock()
    authenticator = Authenticator(AuthConfig(limits=Limits(requests_per_second=0.1)), clock)
    enter(authenticator, ANONYMOUS)
    assert refusal(enter, authenticator, ANONYMOUS).retry_after_s == pytest.approx(10)


def test_a_keys_own_limits_come_before_the_servers():
    clock = Clock()
    server = Limits(requests_per_second=1, burst=1, concurrency=1)
    authenticator = Authenticator(AuthConfig(limits=server), clock)
    fast = Principal("fast", "key", Limits(requests_per_second=4))
    for _ in range(4):
        enter(authenticator, fast)
    assert refusal(enter, authenticator, fast).status == "rate"
    with authenticator.admit(Principal("plain", "key")):
        assert refusal(enter, authenticator, Principal("plain", "key")).status == "concurrency"


def test_principals_do_not_share_a_limit():
    authenticator = Authenticator(AuthConfig(limits=Limits(requests_per_second=1)), Clock())
    for principal in (Principal("a", "key"), Principal("a", "token"), Principal("b", "key")):
        enter(authenticator, principal)
        assert refusal(enter, authenticator, principal).status == "rate"


def test_concurrency_is_released_whatever_happens():
    limits = Limits(concurrency=2, requests_per_second=100, burst=100)
    authenticator = Authenticator(AuthConfig(limits=limits), Clock())
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), authenticator.admit(ANONYMOUS):
            raise ZeroDivisionError
    with authenticator.admit(ANONYMOUS), authenticator.admit(ANONYMOUS):
        refused = refusal(enter, authenticator, ANONYMOUS)
        assert (refused.status, refused.retry_after_s) == ("concurrency", 1.0)
    enter(authenticator, ANONYMOUS)


def test_what_is_refused_for_its_concurrency_costs_no_rate():
    limits = Limits(concurrency=1, requests_per_second=1, burst=2)
    authenticator = Authenticator(AuthConfig(limits=limits), Clock())
    with authenticator.admit(ANONYMOUS):
        for _ in range(5):
            assert refusal(enter, authenticator, ANONYMOUS).status == "concurrency"
    enter(authenticator, ANONYMOUS)


def test_memory_is_bounded_and_those_at_work_are_not_forgotten():
    limits = Limits(concurrency=1)
    authenticator = Authenticator(AuthConfig(limits=limits, principals=3), Clock())
    with authenticator.admit(Principal("busy", "key")):
        for number in range(100):
            enter(authenticator, Principal(str(number), "token"))
        assert len(authenticator._uses) == 3
        assert refusal(enter, authenticator, Principal("busy", "key")).status == "concurrency"


def test_many_threads_are_counted_right():
    limits = Limits(requests_per_second=1, burst=50)
    authenticator = Authenticator(AuthConfig(limits=limits), Clock())
    admitted = []

    def ask():
        for _ in range(20):
            try:
                enter(authenticator, ANONYMOUS)
                admitted.append(1)
            except Refused:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 50


def test_without_auth_all_are_anonymous_and_stay_on_loopback():
    config = AuthConfig()
    assert Authenticator(config).authenticate("Bearer x", "y", NOW) is ANONYMOUS
    for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"):
        require_auth_for(host, config)
    for host in ("0.0.0.0", "::", "10.0.0.5", "example.org", "", "localhost.example.org"):
        with pytest.raises(UserError, match=f"--host {host} opens btray to the network: give --k"):
            require_auth_for(host, config)


def test_with_auth_any_host_will_do(place):
    require_auth_for("0.0.0.0", place[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jwks": "k.json"}, "jwks needs issuer and audience"),
        ({"jwks": "k.json", "issuer": "a"}, "jwks needs issuer and audience"),
        ({"scope": "a"}, "they need jwks"),
        ({"keys": "a"}, "Extra inputs"),
    ],
)
def test_half_a_configuration_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        AuthConfig(**fields)


def test_paths_do_not_depend_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = AuthConfig(keys_file="k.json", jwks="https://a/b", issuer="a", audience="b")
    assert (config.keys_file, config.jwks) == (str(tmp_path / "k.json"), "https://a/b")


def test_the_front_door_knows_its_own(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    monkeypatch.setenv("BTRAY_FRONT_SECRET_FILE", str(path))
    front = Front.from_environment()
    front.check("s3cret")
    for header in (None, "", "s3cret2", "\udcff", "é"):
        assert refusal(front.check, header).status == "forbidden"
    monkeypatch.delenv("BTRAY_FRONT_SECRET_FILE")
    Front.from_environment().check(None)


def test_a_front_secret_that_is_away_or_empty_is_told(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    monkeypatch.setenv("BTRAY_FRONT_SECRET_FILE", str(path))
    with pytest.raises(UserError, match="cannot read the secret of the front door"):
        Front.from_environment()
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        Front.from_environment()
