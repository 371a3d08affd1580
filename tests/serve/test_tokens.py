import base64
import hmac
import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from btray.errors import UserError
from btray.serve.tokens import InvalidToken, KeySet, TokenVerifier, Trust, fetch_keys

NOW = 1_800_000_000.0
TRUST = Trust("https://id.example", "btray", "classify")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def public(key, identifier, **more):
    kind = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    (algorithm,) = (a for k, a in kind.items() if isinstance(key, k))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": identifier, **more}


@pytest.fixture(scope="module")
def signers():
    return {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


@pytest.fixture
def jwks(signers, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [public(key, name) for name, key in signers.items()]}))
    return path


@pytest.fixture
def verifier(jwks):
    return TokenVerifier(KeySet(str(jwks)), TRUST)


def claims(**changes):
    whole = {
        "iss": "https://id.example",
        "aud": ["other", "btray"],
        "sub": "reader",
        "exp": NOW + 60,
        "scope": "openid classify",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def sign(key, algorithm="RS256", identifier=None, **changes):
    headers = {"kid": identifier or algorithm}
    return jwt.encode(claims(**changes), key, algorithm, headers=headers)


def encoded(data):
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token_names_its_subject(verifier, signers, algorithm):
    assert verifier.subject(sign(signers[algorithm], algorithm), NOW) == "reader"


def test_any_signature_of_the_keys_kind_is_taken(verifier, signers):
    token = sign(signers["RS256"], "PS384", "RS256")
    assert verifier.subject(token, NOW) == "reader"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp": NOW - 31}, "expired"),
        ({"exp": None}, "not valid"),
        ({"exp": "soon"}, "times are not numbers"),
        ({"exp": float("nan")}, "expired"),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"aud": "other"}, "another audience"),
        ({"aud": None}, "not valid"),
        ({"iss": "https://id.example/"}, "another issuer"),
        ({"iss": None}, "not valid"),
        ({"sub": None}, "not valid"),
        ({"sub": "a\nb"}, "no usable subject"),
    ],
)
def test_a_token_for_something_else_is_refused(verifier, signers, changes, message):
    with pytest.raises(InvalidToken, match=message) as caught:
        verifier.subject(sign(signers["ES256"], "ES256", **changes), NOW)
    assert not caught.value.forbidden


def test_clocks_may_differ_by_half_a_minute(verifier, signers):
    token = sign(signers["RS256"], exp=NOW - 29, nbf=NOW + 29)
    assert verifier.subject(token, NOW) == "reader"


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"scope": "classify"}, True),
        ({"scope": None, "scp": ["classify"]}, True),
        ({"scope": None, "roles": ["x", "classify"]}, True),
        ({"scope": "classify-all"}, False),
        ({"scope": None}, False),
        ({"scope": {"classify": 1}}, False),
        ({"scope": None, "roles": [1, None]}, False),
    ],
)
def test_the_scope_or_role_decides(verifier, signers, changes, allowed):
    token = sign(signers["EdDSA"], "EdDSA", **changes)
    if allowed:
        assert verifier.subject(token, NOW) == "reader"
        return
    with pytest.raises(InvalidToken, match="lacks the scope classify") as caught:
        verifier.subject(token, NOW)
    assert caught.value.forbidden


def test_a_tampered_token_is_refused(verifier, signers):
    header, payload, signature = sign(signers["RS256"]).split(".")
    forged = encoded(claims(sub="admin"))
    for token in (f"{header}.{forged}.{signature}", f"{header}.{payload}.{signature[:-8]}AAAAAAAA"):
        with pytest.raises(InvalidToken, match="not valid"):
            verifier.subject(token, NOW)


def test_another_key_under_a_known_name_is_refused(verifier):
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InvalidToken, match="not valid"):
        verifier.subject(sign(stranger, "ES256"), NOW)


def test_alg_none_is_refused(verifier):
    for name in ("none", "None", "NONE", ""):
        token = f"{encoded({'alg': name, 'kid': 'RS256'})}.{encoded(claims())}."
        with pytest.raises(InvalidToken, match="not valid"):
            verifier.subject(token, NOW)


def test_a_public_key_is_no_shared_secret(verifier, signers):
    """HS256 over the bytes of the RSA public key, in the forms they are published in."""
    key = signers["RS256"].public_key()
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        secret = key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        start = f"{encoded({'alg': 'HS256', 'kid': 'RS256'})}.{encoded(claims())}"
        mac = hmac.new(secret, start.encode(), sha256).digest()
        signature = base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
        with pytest.raises(InvalidToken, match="not valid"):
            verifier.subject(f"{start}.{signature}", NOW)


def test_a_key_meant_for_one_algorithm_makes_no_other(signers, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [public(signers["RS256"], "a", alg="RS256")]}))
    verifier = TokenVerifier(KeySet(str(path)), TRUST)
    assert verifier.subject(sign(signers["RS256"], "RS256", "a"), NOW) == "reader"
    with pytest.raises(InvalidToken, match="not valid"):
        verifier.subject(sign(signers["RS256"], "RS512", "a"), NOW)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "RS256", "kid": 7},
        {"alg": "RS256", "kid": ["RS256"]},
        {"alg": "RS256", "kid": None},
        {"alg": ["RS256"], "kid": "RS256"},
        {"kid": "RS256"},
        {"alg": "RS256", "kid": "RS256", "crit": ["b64"], "b64": False},
        [],
        "RS256",
    ],
)
def test_an_odd_header_is_refused(verifier, header):
    with pytest.raises(InvalidToken, match="not valid"):
        verifier.subject(f"{encoded(header)}.{encoded(claims())}.AAAA", NOW)


def test_deeply_nested_json_is_refused(verifier):
    deep = base64.urlsafe_b64encode(b"[" * 12000).rstrip(b"=").decode()
    with pytest.raises(InvalidToken, match="not valid"):
        verifier.subject(f"{deep}.{deep}.AAAA", NOW)


def test_a_token_needs_no_kid_where_there_is_one_key(signers, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [public(signers["ES256"], "only")]}))
    token = jwt.encode(claims(), signers["ES256"], "ES256")
    assert TokenVerifier(KeySet(str(path)), TRUST).subject(token, NOW) == "reader"


def test_secrets_and_private_keys_are_not_for_checking(signers, tmp_path):
    private = jwt.algorithms.ECAlgorithm.to_jwk(signers["ES256"], as_dict=True)
    unusable = [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "a"},
        {**private, "kid": "b"},
        public(signers["RS256"], "c", use="enc"),
        {"kty": "RSA", "n": "!", "e": 3},
        {"kty": "DSA"},
        "RSA",
    ]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": unusable}))
    with pytest.raises(UserError, match="no public key for signatures"):
        fetch_keys(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 3}', '{"keys": {}}', '{"keys": []}'])
def test_what_is_no_key_set_is_one_line(tmp_path, text):
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"not a JSON Web Key Set|no public key"):
        fetch_keys(str(path))


def test_other_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="come from a file, https"):
        fetch_keys("ftp://id.example/jwks")
    with pytest.raises(UserError, match="cannot read the token keys"):
        fetch_keys(str(tmp_path / "none"))


class Provider:
    """An identity provider's key server, which can go away."""

    def __init__(self):
        self.keys, self.asked = [], 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.asked += 1
                status = 200 if provider.keys else 500
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps({"keys": provider.keys}).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def provider():
    provider = Provider()
    yield provider
    provider.stop()


def at_once(task):
    task()


def test_an_unknown_key_is_looked_for_at_most_twice_a_minute(provider, signers):
    clock = Clock()
    provider.keys = [public(signers["RS256"], "RS256")]
    verifier = TokenVerifier(KeySet(provider.url, clock, at_once), TRUST)
    provider.keys = [public(signers["ES256"], "ES256")]
    new = sign(signers["ES256"], "ES256")
    clock.now = 29
    for _ in range(3):
        with pytest.raises(InvalidToken):
            verifier.subject(new, NOW)
    assert provider.asked == 1
    clock.now = 30
    assert verifier.subject(new, NOW) == "reader"
    clock.now = 59
    for _ in range(3):
        with pytest.raises(InvalidToken):
            verifier.subject(sign(signers["RS256"]), NOW)
    assert provider.asked == 2


def test_the_keys_before_stay_when_the_provider_is_away(provider, signers, caplog):
    clock = Clock()
    provider.keys = [public(signers["RS256"], "RS256")]
    verifier = TokenVerifier(KeySet(provider.url, clock, at_once), TRUST)
    provider.keys = []
    clock.now = 1000
    assert verifier.subject(sign(signers["RS256"]), NOW) == "reader"
    provider.stop()
    clock.now = 2000
    assert verifier.subject(sign(signers["RS256"]), NOW) == "reader"
    assert caplog.text.count("the token keys before stay in use") == 2


def test_a_key_the_provider_drops_is_dropped(provider, signers):
    clock = Clock()
    provider.keys = [public(signers["RS256"], "RS256"), public(signers["ES256"], "ES256")]
    verifier = TokenVerifier(KeySet(provider.url, clock, at_once), TRUST)
    provider.keys = provider.keys[1:]
    clock.now = 300
    with pytest.raises(InvalidToken):
        verifier.subject(sign(signers["RS256"]), NOW)


def test_no_request_waits_for_the_provider(provider, signers):
    provider.keys = [public(signers["RS256"], "RS256")]
    clock, tasks = Clock(), []
    verifier = TokenVerifier(KeySet(provider.url, clock, tasks.append), TRUST)
    clock.now = 300
    assert verifier.subject(sign(signers["RS256"]), NOW) == "reader"
    assert (len(tasks), provider.asked) == (1, 1)


def test_keys_are_fetched_in_a_thread_of_their_own(provider, signers):
    clock = Clock()
    provider.keys = [public(signers["RS256"], "RS256")]
    keys = KeySet(provider.url, clock)
    provider.keys = [public(signers["ES256"], "ES256")]
    clock.now = 30
    keys.find("ES256")
    for thread in threading.enumerate():
        if thread.name == "btray-jwks":
            thread.join()
    assert keys.find("ES256").identifier == "ES256"
    assert keys.find("RS256") is None


def test_a_provider_away_at_the_start_is_told(provider):
    provider.stop()
    with pytest.raises(UserError, match="cannot fetch the token keys"):
        KeySet(provider.url)
