#!/usr/bin/env python3
"""Recomputes every vector of docs/protocol.md, from that page's rules alone.

Shares no code with the Rust implementation, whose output the vectors are. Needs Python 3.9 and
`pip install cryptography kyber-py`. With --print it writes the values that it found instead.
"""

import base64
import binascii
import hashlib
import hmac
import json
import pathlib
import re
import sys
import uuid

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kyber_py.ml_kem import ML_KEM_768

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
NOISE = b"Noise_IKpsk2_25519_ChaChaPoly_SHA512"


def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha512).digest()


def expand(secret, info, length=64):
    return hmac.new(secret, info + b"\x01", hashlib.sha512).digest()[:length]


def public(secret):
    key = X25519PrivateKey.from_private_bytes(secret).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(secret, theirs):
    private = X25519PrivateKey.from_private_bytes(secret)
    return private.exchange(X25519PublicKey.from_public_bytes(theirs))


def len64(data):
    return len(data).to_bytes(8, "big")


def sized(data):
    return len64(data) + data


class Noise:
    """One side of the handshake; Noise specification, section 5."""

    def __init__(self, prologue, server_public):
        self.h = NOISE + bytes(64 - len(NOISE))
        self.ck = self.h
        self.mix_hash(prologue)
        self.mix_hash(server_public)

    def mix_hash(self, data):
        self.h = hashlib.sha512(self.h + data).digest()

    def hkdf(self, ikm, count):
        """HKDF of Noise, section 4.3: RFC 5869 with ck as salt and no info."""
        secret, outputs, last = extract(self.ck, ikm), [], b""
        for number in range(1, count + 1):
            last = hmac.new(secret, last + bytes([number]), hashlib.sha512).digest()
            outputs.append(last)
        return outputs

    def mix_key(self, ikm):
        self.ck, key = self.hkdf(ikm, 2)
        self.key, self.nonce = key[:32], 0

    def mix_key_and_hash(self, ikm):
        self.ck, temporary, key = self.hkdf(ikm, 3)
        self.mix_hash(temporary)
        self.key, self.nonce = key[:32], 0

    def ephemeral(self, key):
        self.mix_hash(key)
        self.mix_key(key)

    def seal(self, plaintext):
        nonce = bytes(4) + self.nonce.to_bytes(8, "little")
        sealed = ChaCha20Poly1305(self.key).encrypt(nonce, plaintext, self.h)
        self.nonce += 1
        self.mix_hash(sealed)
        return sealed

    def split(self):
        return b"".join(key[:32] for key in self.hkdf(b"", 2))


def client_transcript(hello):
    out = sized(b"LLP-v1-client-hello") + sized(bytes(hello["client_random"]))
    out += hello["protocol_version"].to_bytes(2, "big")
    out += len64(hello["minor_versions"])
    for minor in hello["minor_versions"]:
        out += minor.to_bytes(2, "big")
    out += len64(hello["suites"])
    for suite in hello["suites"]:
        out += sized(suite.encode())
    return out + sized(base64.b64decode(hello["kem"], validate=True))


def server_transcript(hello):
    out = sized(b"LLP-v1-server-hello") + sized(bytes(hello["server_random"]))
    out += sized(uuid.UUID(hello["session_id"]).bytes)
    out += hello["minor_version"].to_bytes(2, "big") + sized(hello["suite"].encode())
    return out + sized(base64.b64decode(hello["kem"], validate=True))


def packet_keys(traffic):
    return expand(traffic, b"chacha", 32), expand(traffic, b"aes", 32), expand(traffic, b"iv", 12)


def seal(suite, traffic, header_fields, plaintext):
    """A sealed packet: header_fields are type, stream, sequence, timestamp and flags."""
    kind, stream, sequence, timestamp, flags = header_fields
    chacha, aes, iv = packet_keys(traffic)
    header = b"LL" + kind.to_bytes(1, "big") + stream.to_bytes(2, "big")
    header += sequence.to_bytes(8, "big")
    header += (len(plaintext) + {"hse": 32}.get(suite, 16)).to_bytes(2, "big")
    header += timestamp.to_bytes(6, "big") + bytes([flags | 0x08])
    nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
    payload = plaintext
    if suite in ("hse", "chacha20-poly1305"):
        payload = ChaCha20Poly1305(chacha).encrypt(nonce, payload, header)
    if suite in ("hse", "aes-256-gcm"):
        payload = AESGCM(aes).encrypt(nonce, payload, header)
    return header + binascii.crc_hqx(header, 0xFFFF).to_bytes(2, "big") + payload


def restore(payload):
    """What a compressed payload was: its length, and a block of LZ4."""
    block, out = iter(payload[2:]), bytearray()

    def extended(length):
        more = 255 if length == 15 else 0
        while more == 255:
            more = next(block)
            length += more
        return length

    while True:
        token = next(block)
        out += bytes(next(block) for _ in range(extended(token >> 4)))
        low = next(block, None)
        if low is None:
            break
        start = len(out) - (low + 256 * next(block))
        for at in range(start, start + 4 + extended(token & 15)):
            out.append(out[at])
    assert len(out) == int.from_bytes(payload[:2], "big")
    return bytes(out)


def compressed(given, traffic):
    payload = given["compressed_plaintext"]
    found = {"compressed_entry": restore(payload)}
    for suite in ("hse", "aes-256-gcm", "chacha20-poly1305"):
        fields = (1, 1, 1, 1_700_000_000_001, 0x40)
        found[f"compressed_{suite.replace('-', '_')}"] = seal(suite, traffic, fields, payload)
    return found


def kem_keys(seed):
    """Encapsulation and decapsulation key from d || z; FIPS 203, algorithm 16."""
    return ML_KEM_768._keygen_internal(seed[:32], seed[32:])


def handshake(given):
    client = json.loads(given["client_hello"])["ClientHello"]
    server = json.loads(given["server_hello"])["ServerHello"]
    t_c, t_s = client_transcript(client), server_transcript(server)
    encapsulation_key, decapsulation_key = kem_keys(given["client_kem_seed"])
    assert base64.b64decode(client["kem"]) == encapsulation_key
    k, ciphertext = ML_KEM_768._encaps_internal(encapsulation_key, given["server_kem_m"])
    assert base64.b64decode(server["kem"]) == ciphertext
    assert ML_KEM_768.decaps(decapsulation_key, ciphertext) == k

    found = {"t_c_sha512": hashlib.sha512(t_c).digest(), "t_s_sha512": hashlib.sha512(t_s).digest()}
    c_static, c_ephemeral = given["client_static"], given["client_ephemeral"]
    s_static, s_ephemeral = given["server_static"], given["server_ephemeral"]
    noise = Noise(t_c, public(s_static))
    found["h_after_prologue_and_s"] = noise.h
    noise.ephemeral(public(c_ephemeral))
    noise.mix_key(dh(c_ephemeral, public(s_static)))
    sealed_static = noise.seal(public(c_static))
    noise.mix_key(dh(c_static, public(s_static)))
    message = public(c_ephemeral) + sealed_static + noise.seal(given["client_offer"])
    assert base64.b64decode(client["noise"]) == message
    found["message_1"], found["h_after_message_1"] = message, noise.h
    found["ck_after_message_1"] = noise.ck

    binding = b"LLP-v1-psk" + hashlib.sha512(t_c + t_s).digest()
    psk = expand(extract(bytes(64), k + given["preshared_key"]), binding, 32)
    found["kem_secret"], found["psk"] = k, psk
    noise.ephemeral(public(s_ephemeral))
    noise.mix_key(dh(c_ephemeral, public(s_ephemeral)))
    noise.mix_key(dh(c_static, public(s_ephemeral)))
    noise.mix_key_and_hash(psk)
    message = public(s_ephemeral) + noise.seal(given["grant"])
    assert base64.b64decode(server["noise"]) == message
    found["message_2"], found["h_after_message_2"] = message, noise.h

    found["k1_k2"] = noise.split()
    salt = bytes(client["client_random"]) + bytes(server["server_random"])
    found["master"] = expand(extract(salt, found["k1_k2"]), b"LLP-v1-master")
    return found


def records(master):
    client = expand(master, b"client-to-server")
    server = expand(master, b"server-to-client")
    found = {"client_traffic_0": client, "server_traffic_0": server}
    for name, traffic in (("client", client), ("server", server)):
        chacha, aes, iv = packet_keys(traffic)
        found |= {f"{name}_chacha_0": chacha, f"{name}_aes_0": aes, f"{name}_iv_0": iv}
    rotated = expand(client, b"rotate")
    found["client_traffic_1"] = rotated
    packet = bytes.fromhex("4500001c00010000400166d80a0800070a0800010800f7fe00000001")
    entry = len(packet).to_bytes(2, "big") + bytes(2) + packet
    start = 1_700_000_000_000
    for suite in ("hse", "aes-256-gcm", "chacha20-poly1305"):
        name = suite.replace("-", "_")
        found[f"keepalive_{name}"] = seal(suite, client, (5, 0, 0, start, 0), b"")
        found[f"data_{name}"] = seal(suite, client, (1, 2, 1, start + 1, 0x04), entry)
        later = (5, 0, 2, start + 600_000, 0x10)
        found[f"rotated_{name}"] = seal(suite, rotated, later, b"")
    return found


def exchange(given, traffic):
    encapsulation_key, decapsulation_key = kem_keys(given["exchange_client_kem_seed"])
    k, ciphertext = ML_KEM_768._encaps_internal(encapsulation_key, given["exchange_server_kem_m"])
    assert ML_KEM_768.decaps(decapsulation_key, ciphertext) == k
    init = public(given["exchange_client_dh"]) + encapsulation_key
    response = public(given["exchange_server_dh"]) + ciphertext
    shared = dh(given["exchange_client_dh"], public(given["exchange_server_dh"]))
    fresh = expand(extract(init + response, shared + k), b"LLP-v1-exchange")
    return {
        "exchange_init_sha512": hashlib.sha512(init).digest(),
        "exchange_response_sha512": hashlib.sha512(response).digest(),
        "exchange_fresh": fresh,
        "exchange_client_traffic_1": expand(extract(traffic, fresh), b"mix"),
    }


def read_page():
    """The vectors: lines `name = value`, hexadecimal but for the two hellos."""
    text = PAGE.read_text(encoding="utf-8").split("## 14. Test vectors", 1)[1]
    vectors = {}
    for name, value in re.findall(r"^([a-z0-9_]+) = (.+)$", text, re.MULTILINE):
        vectors[name] = value if name.endswith("_hello") else bytes.fromhex(value)
    return vectors


def main():
    given = read_page()
    assert binascii.crc_hqx(b"123456789", 0xFFFF) == 0x29B1
    found = handshake(given)
    found |= records(found["master"])
    found |= exchange(given, found["client_traffic_0"])
    found |= compressed(given, found["client_traffic_0"])
    if "--print" in sys.argv:
        for name, value in found.items():
            print(f"{name} = {value.hex()}")
        return
    wrong = [name for name, value in found.items() if given.get(name) != value]
    for name in wrong:
        print(f"{name} differs", file=sys.stderr)
    print(f"{len(found) - len(wrong)} of {len(found)} vectors fit docs/protocol.md")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
