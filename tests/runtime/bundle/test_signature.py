"""Signatures: whose, over what, and the same for `model_signing` as for this package."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from arvg_trt.benchmarks.fuzz.bundles import forged, members_of, small_contents
from arvg_trt.engines.bundle.write import sign_bundle, write_bundle
from arvg_trt.errors import IntegrityError
from arvg_trt.runtime.bundle.keys import (
    key_hint,
    private_pem,
    public_pem,
    read_private_key,
    read_public_key,
)
from arvg_trt.runtime.bundle.reader import Bundle
from arvg_trt.runtime.bundle.signature import (
    read_signature,
    sign,
    verify_signature,
)

from .keys import CURVES, key_of

DIGESTS = {"a.onnx": "0" * 64, "b/c.engine": "1" * 64, "bundle.json": "2" * 64}


def named(owner: str, curve: str = "P-256") -> tuple[str, ec.EllipticCurvePublicKey]:
    return f"{owner}.pub", key_of(owner, curve).public_key()


def check(data: bytes, digests: dict[str, str] = DIGESTS, owner: str = "ci") -> None:
    verify_signature(read_signature(data, "x.tar"), digests, key_of(owner).public_key(), "x.tar")


def refusal(data: bytes, digests: dict[str, str] = DIGESTS, owner: str = "ci") -> str:
    with pytest.raises(IntegrityError) as caught:
        check(data, digests, owner)
    text = str(caught.value)
    assert text.startswith("x.tar: ") and text.isprintable() and len(text) < 500
    return text


@pytest.mark.parametrize("curve", CURVES)
def test_signature_is_verified_by_its_key_alone(curve: str) -> None:
    key = key_of("ci", curve)
    made = read_signature(sign("int8", DIGESTS, key), "x.tar")
    verify_signature(made, DIGESTS, key.public_key(), "x.tar")
    with pytest.raises(IntegrityError, match="is signed by another key"):
        verify_signature(made, DIGESTS, key_of("other", curve).public_key(), "x.tar")


def test_key_that_takes_the_name_of_another_is_refused() -> None:
    forged_hint = json.loads(sign("int8", DIGESTS, key_of("forger")))
    for hint in (key_hint(key_of("ci").public_key()), ""):
        forged_hint["verificationMaterial"]["publicKey"]["hint"] = hint
        assert "not by this key" in refusal(json.dumps(forged_hint).encode())


@pytest.mark.parametrize(
    "digests",
    [
        {},
        DIGESTS | {"more": "3" * 64},
        {path: DIGESTS[path] for path in ("a.onnx", "bundle.json")},
        DIGESTS | {"a.onnx": "4" * 64},
        {"A.onnx": "0" * 64, "b/c.engine": "1" * 64, "bundle.json": "2" * 64},
        {"a.onnx": "1" * 64, "b/c.engine": "0" * 64, "bundle.json": "2" * 64},
    ],
)
def test_signature_of_other_files_is_refused(digests: dict[str, str]) -> None:
    assert "differs from what was signed" in refusal(sign("int8", DIGESTS, key_of("ci")), digests)


def resigned(change: Callable[[dict[str, Any]], object], kind: str = "") -> bytes:
    """Return a signature by the right key of a changed statement, under a payload type."""
    made = json.loads(sign("int8", DIGESTS, key_of("ci")))
    envelope = made["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    done = change(statement)
    payload = done if isinstance(done, bytes) else json.dumps(statement).encode()
    used = kind or envelope["payloadType"]
    text = b"DSSEv1 %d %s %d %s" % (len(used), used.encode(), len(payload), payload)
    signature = key_of("ci").sign(text, ec.ECDSA(hashes.SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["payloadType"] = used
    envelope["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
    return json.dumps(made).encode()


def test_statement_signed_again_unchanged_is_accepted() -> None:
    """Guards the tests below: what they are refused for is their change alone."""
    check(resigned(lambda statement: None))


STATEMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "predicate that steers a terminal": lambda s: s.update(predicateType="\x1b[2J\nsigned"),
    "shards": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "another hash": lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
    "digest of another hash": lambda s: s["predicate"]["resources"][0].update(algorithm="sha512"),
    "another root": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "no root": lambda s: s["subject"][0]["digest"].clear(),
    "no subject": lambda s: s["subject"].clear(),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "a file twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
    "no files": lambda s: s["predicate"]["resources"].clear(),
    "digest that is none": lambda s: s["predicate"]["resources"][0].update(digest="xyz"),
    "digest with blanks": lambda s: s["predicate"]["resources"][0].update(digest="00 " * 32),
    "no statement": lambda s: b"[]",
    "nothing": lambda s: b"",
    "no text": lambda s: b"\xff\xfe",
    "nested": lambda s: b"[" * 100_000,
    "key twice": lambda s: json.dumps(s).replace("{", '{"predicate": {}, ', 1).encode(),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_statement_of_something_else_is_refused_though_the_key_signed_it(case: str) -> None:
    assert "has a signature of something else" in refusal(resigned(STATEMENTS[case]))


def test_payload_of_another_type_is_refused() -> None:
    """DSSE signs the type too: what was signed as something else is no statement."""
    refusal(resigned(lambda statement: None, kind="application/vnd.other+json"))


def envelope(change: Callable[[dict[str, Any]], object]) -> bytes:
    made = json.loads(sign("int8", DIGESTS, key_of("ci")))
    done = change(made)
    return done if isinstance(done, bytes) else json.dumps(made).encode()


ENVELOPES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another media type": lambda m: m.update(mediaType="application/json"),
    "no envelope": lambda m: m.pop("dsseEnvelope"),
    "payload that is no base64": lambda m: m["dsseEnvelope"].update(payload="%%%"),
    "payload of letters beyond ASCII": lambda m: m["dsseEnvelope"].update(payload="éé=="),
    "empty payload": lambda m: m["dsseEnvelope"].update(payload=""),
    "another payload": lambda m: m["dsseEnvelope"].update(payload="e30="),
    "signature that is no base64": lambda m: m["dsseEnvelope"]["signatures"][0].update(sig="%"),
    "signature that is none": lambda m: m["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
    "empty signature": lambda m: m["dsseEnvelope"]["signatures"][0].update(sig=""),
    "no signatures": lambda m: m["dsseEnvelope"]["signatures"].clear(),
    "two signatures": lambda m: m["dsseEnvelope"]["signatures"].append({"sig": "AAAA"}),
    "hint that steers a terminal": lambda m: m["verificationMaterial"]["publicKey"].update(
        hint="\x1b[2J\nsigned by ci.pub"
    ),
    "hint with a line break": lambda m: m["verificationMaterial"]["publicKey"].update(
        hint="0" * 64 + "\n"
    ),
    "certificate": lambda m: m.update(verificationMaterial={"certificate": {"rawBytes": ""}}),
    "nothing": lambda m: b"",
    "nested": lambda m: b"[" * 100_000,
    "nested log": lambda m: (
        json.dumps(m).replace('"tlogEntries": []', '"tlogEntries": ' + "[" * 100_000).encode()
    ),
    "key twice": lambda m: json.dumps(m).replace("{", '{"dsseEnvelope": 1, ', 1).encode(),
}


@pytest.mark.parametrize("case", ENVELOPES)
def test_damaged_envelope_is_refused(case: str) -> None:
    refusal(envelope(ENVELOPES[case]))


def test_flip_of_any_byte_of_a_signature_is_refused_or_changes_nothing() -> None:
    whole = sign("int8", DIGESTS, key_of("ci"))
    start = whole.index(b'"dsseEnvelope"') + len(b'"dsseEnvelope"')
    accepted = []
    for at in range(start, len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 0x01
        try:
            check(bytes(flipped))
        except IntegrityError as error:
            assert "\n" not in str(error)
        else:
            accepted.append(at)
    # Letters of base64 whose last bits say nothing, and the names of keys that may be missing.
    assert len(accepted) < 20


# Keys.


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        ec.generate_private_key(ec.BrainpoolP384R1()),
        ec.generate_private_key(ec.SECP224R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=lambda key: getattr(getattr(key, "curve", None), "name", type(key).__name__),
)
def test_key_on_another_curve_or_of_another_kind_is_refused(key: Any, tmp_path: Path) -> None:
    pem = serialization.Encoding.PEM
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    plain = serialization.NoEncryption()
    (tmp_path / "x.pub").write_bytes(key.public_key().public_bytes(pem, info))
    (tmp_path / "x.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )
    for read, name in ((read_public_key, "x.pub"), (read_private_key, "x.key")):
        with pytest.raises(IntegrityError, match=f"{name}: is no ECDSA key on P-256, P-384 or"):
            read(tmp_path / name)


def test_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    key = key_of("ci")
    public, private = public_pem(key.public_key()), private_pem(key)
    for data in (b"", b"x", b"\xff" * 99, public[:-30], public.replace(b"A", b"%")):
        (tmp_path / "x.pub").write_bytes(data)
        with pytest.raises(IntegrityError, match="is no public key in PEM form"):
            read_public_key(tmp_path / "x.pub")
    for data in (b"", b"x", private[:-30], private.replace(b"A", b"%")):
        (tmp_path / "x.key").write_bytes(data)
        with pytest.raises(IntegrityError, match="is no private key that can be read"):
            read_private_key(tmp_path / "x.key")


def test_other_half_of_a_pair_is_told_from_no_key(tmp_path: Path) -> None:
    key = key_of("ci")
    (tmp_path / "ci.key").write_bytes(private_pem(key))
    (tmp_path / "ci.pub").write_bytes(public_pem(key.public_key()))
    (tmp_path / "locked.key").write_bytes(private_pem(key, b"secret"))
    with pytest.raises(IntegrityError, match=r"ci\.pub: is the public half .* \(name .*ci\.key\)"):
        read_private_key(tmp_path / "ci.pub", b"secret")
    for name in ("ci", "locked"):
        wanted = rf"{name}\.key: is the private half .* \(name .*{name}\.pub\)"
        with pytest.raises(IntegrityError, match=wanted):
            read_public_key(tmp_path / f"{name}.key")


def test_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    (tmp_path / "x.key").write_bytes(private_pem(key_of("ci"), b"secret"))
    assert read_private_key(tmp_path / "x.key", b"secret").curve.name == "secp256r1"
    with pytest.raises(IntegrityError, match=r"is closed by a password \(set ARVG_TRT_KEY"):
        read_private_key(tmp_path / "x.key")
    with pytest.raises(IntegrityError, match="is not opened by the password") as caught:
        read_private_key(tmp_path / "x.key", b"other")
    assert "keygen" not in str(caught.value)


def test_password_that_a_key_does_not_need_is_not_looked_at(tmp_path: Path) -> None:
    """A CI system may have one key with a password and one without."""
    (tmp_path / "x.key").write_bytes(private_pem(key_of("ci")))
    assert read_private_key(tmp_path / "x.key", b"secret").curve.name == "secp256r1"


# Signatures of whole bundles.


def written(folder: Path, name: str, owner: str | None = None, **more: Any) -> Path:
    path = folder / name
    write_bundle(path, small_contents(**more), None if owner is None else key_of(owner))
    return path


def require(path: Path, *owners: str) -> tuple[str, ...]:
    with Bundle(path) as bundle:
        return bundle.require_signature([named(owner) for owner in owners])


def test_unsigned_bundle_is_refused_where_a_key_is_required(tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"is not signed, and a signature by ci\.pub is required"
    ):
        require(written(tmp_path, "x.tar"), "ci")


def test_bundle_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is signed by another key"):
        require(written(tmp_path, "x.tar", "forger"), "ci")


def test_one_of_several_keys_is_enough(tmp_path: Path) -> None:
    assert require(written(tmp_path, "x.tar", "ci"), "other", "ci") == ("ci.pub",)


def test_second_signature_stands_beside_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, "x.tar", "ci")
    with Bundle(path) as bundle:
        sign_bundle(bundle, path, key_of("release", "P-384"))
        digest = bundle.digest
    with Bundle(path) as bundle:
        assert bundle.digest == digest
        assert bundle.require_signature([named("ci")]) == ("ci.pub",)
        assert bundle.require_signature([named("release", "P-384")]) == ("release.pub",)
        with pytest.raises(IntegrityError):
            bundle.require_signature([named("other")])
        bundle.verify()


def test_signing_again_with_one_key_keeps_one_signature(tmp_path: Path) -> None:
    path = written(tmp_path, "x.tar", "ci", documents={"empty.json": b"{}"})
    for _ in range(2):
        with Bundle(path) as bundle:
            sign_bundle(bundle, path, key_of("ci"))
    with Bundle(path) as bundle:
        assert len(bundle.signatures) == 1
        bundle.verify()
    assert require(path, "ci") == ("ci.pub",)


def test_signature_whose_blobs_are_also_files_is_replaced_and_they_stay(tmp_path: Path) -> None:
    """A foreign signature may call an engine its description: it must not go with it."""

    def borrow(manifest: dict[str, Any]) -> None:
        file = small_contents().facts.groups[0].files[0]
        manifest["config"] |= {"digest": f"sha256:{file.sha256}", "size": file.bytes}

    path = written(tmp_path, "x.tar", "ci")
    path.write_bytes(forged(path.read_bytes(), signature=borrow, members=without_empty))
    with Bundle(path) as bundle:
        sign_bundle(bundle, path, key_of("ci"))
    with Bundle(path) as bundle:
        bundle.verify()
        assert len(bundle.signatures) == 1


def without_empty(members: dict[str, bytes]) -> None:
    for name in [name for name, data in members.items() if data == b"{}"]:
        del members[name]


def test_signature_of_another_bundle_pasted_in_is_refused(tmp_path: Path) -> None:
    """The forger lets the pasted signature refer to this bundle, as it must."""
    other = written(tmp_path, "other.tar", "ci", documents={"other.md": b"other"}).read_bytes()
    (signature,) = (data for data in members_of(other).values() if b"dsseEnvelope" in data)
    mine = written(tmp_path, "x.tar", "forger").read_bytes()
    (own,) = (data for data in members_of(mine).values() if b"dsseEnvelope" in data)
    path = tmp_path / "pasted.tar"

    def paste(manifest: dict[str, Any]) -> None:
        digest = hashlib.sha256(signature).hexdigest()
        manifest["layers"][0] |= {"digest": f"sha256:{digest}", "size": len(signature)}

    def replace(members: dict[str, bytes]) -> None:
        del members[f"blobs/sha256/{hashlib.sha256(own).hexdigest()}"]
        members[f"blobs/sha256/{hashlib.sha256(signature).hexdigest()}"] = signature

    path.write_bytes(forged(mine, signature=paste, members=replace))
    require_nothing(path)
    with pytest.raises(IntegrityError, match="has a signature of something else"):
        require(path, "ci")


def require_nothing(path: Path) -> None:
    """Open and verify a bundle as a device does that requires no key."""
    with Bundle(path) as bundle:
        bundle.verify()


def test_manifest_of_a_signature_of_another_bundle_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "x.tar", "ci")
    other = {"subject": {"mediaType": "x", "digest": f"sha256:{'0' * 64}", "size": 1}}
    path.write_bytes(forged(path.read_bytes(), signature=lambda m: m.update(other)))
    with pytest.raises(IntegrityError, match="has a signature of another bundle"):
        require_nothing(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("subject"),
        lambda m: m.update(artifactType="text/plain\n\x1b[2J"),
        lambda m: m["layers"].clear(),
        lambda m: m["layers"].append(m["layers"][0]),
        lambda m: b"{}",
    ],
)
def test_signature_without_what_makes_it_one_is_refused(change: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "x.tar", "ci")
    path.write_bytes(forged(path.read_bytes(), signature=change))
    with pytest.raises(IntegrityError) as caught:
        require_nothing(path)
    assert str(caught.value).isprintable()


def test_facts_changed_under_a_signature_are_refused(tmp_path: Path) -> None:
    """Everything but the signature is mended; without a required key it is another bundle."""
    path = written(tmp_path, "x.tar", "ci")
    path.write_bytes(forged(path.read_bytes(), facts=lambda f: f.update(tool="another tool")))
    require_nothing(path)
    with pytest.raises(IntegrityError, match=r"bundle\.json differs from what was signed"):
        require(path, "ci")


def test_damaged_bundle_is_not_signed(tmp_path: Path) -> None:
    path = written(tmp_path, "x.tar")
    data = bytearray(path.read_bytes())
    data[data.index(b"an onnx graph")] ^= 1
    path.write_bytes(data)
    with Bundle(path) as bundle, pytest.raises(IntegrityError, match="was changed"):
        sign_bundle(bundle, tmp_path / "signed.tar", key_of("ci"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


# The package `model_signing`.


@contextlib.contextmanager
def foreign() -> Iterator[Any]:
    """Import `model_signing`; what its libraries warn of at that time is theirs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import model_signing.signing
        import model_signing.verifying

        yield model_signing


def unpacked(folder: Path, curve: str) -> tuple[Path, Path, Path, ec.EllipticCurvePrivateKey]:
    """Unpack a signed bundle; return its folder, its signature, the public key and the key."""
    key = key_of("ci", curve)
    path = folder / "x.tar"
    write_bundle(path, small_contents(), key)
    with Bundle(path) as bundle:
        bundle.extract((bundle.facts_file, *bundle.facts.files), folder / "model")
    (data,) = (data for data in members_of(path.read_bytes()).values() if b"dsseEnvelope" in data)
    (folder / "model.sig").write_bytes(data)
    (folder / "x.pub").write_bytes(public_pem(key.public_key()))
    (folder / "x.key").write_bytes(private_pem(key))
    return folder / "model", folder / "model.sig", folder / "x.pub", key


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
def test_model_signing_verifies_our_signature(curve: str, tmp_path: Path) -> None:
    model, signature, public, _ = unpacked(tmp_path, curve)
    with foreign() as package:
        config = package.verifying.Config().use_elliptic_key_verifier(public_key=public)
        config.verify(model, signature)
        (model / "README.md").write_bytes(b"# Another model\n")
        with pytest.raises(ValueError, match=r"Hash mismatch for 'README\.md'"):
            config.verify(model, signature)


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
def test_we_verify_the_signature_of_model_signing(curve: str, tmp_path: Path) -> None:
    model, signature, _, key = unpacked(tmp_path, curve)
    with Bundle(tmp_path / "x.tar") as bundle:
        digests = bundle.digests()
    signature.unlink()
    with foreign() as package:
        config = package.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "x.key")
        config.sign(model, signature)
    made = read_signature(signature.read_bytes(), "model.sig")
    verify_signature(made, digests, key.public_key(), "model.sig")
    with pytest.raises(IntegrityError, match="differs from what was signed"):
        verify_signature(made, digests | {"README.md": "0" * 64}, key.public_key(), "model.sig")
    other = key_of("other", curve).public_key()
    with pytest.raises(IntegrityError, match="is signed by another key"):
        verify_signature(made, digests, other, "model.sig")


def value_at(data: bytes, key: bytes) -> range:
    """The places of a string's letters behind its key."""
    start = data.index(key) + len(key)
    return range(start, data.index(b'"', start))


def test_model_signing_and_we_refuse_the_same_flips(tmp_path: Path) -> None:
    """Every 29th byte of payload and signature: neither takes what the other refuses."""
    model, signature, public, key = unpacked(tmp_path, "P-256")
    with Bundle(tmp_path / "x.tar") as bundle:
        digests = bundle.digests()
    whole = signature.read_bytes()
    with foreign() as package:
        config = package.verifying.Config().use_elliptic_key_verifier(public_key=public)
        places = [at for key in (b'"payload":"', b'"sig":"') for at in value_at(whole, key)[::29]]
        for at in places:
            flipped = bytearray(whole)
            flipped[at] ^= 0x02
            signature.write_bytes(flipped)
            try:
                made = read_signature(bytes(flipped), "model.sig")
                verify_signature(made, digests, key.public_key(), "model.sig")
            except IntegrityError:
                # It raises whatever its libraries do.
                with pytest.raises(Exception):  # noqa: B017
                    config.verify(model, signature)
            else:
                config.verify(model, signature)
