"""Reads a sealed model by the letter of docs/container-format.md.

An implementation of its own, in plain Python and its standard library (no code is
shared with the crate, down to BLAKE3, AES-GCM and Ed25519), to show that the
document suffices. Slow and not constant-time: for test vectors only.

    python3 read.py            checks the vector beside this file
"""

import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path


# --- BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) -------------------------

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, PARENT, ROOT, DERIVE_CONTEXT, DERIVE_MATERIAL = 1, 2, 4, 8, 32, 64


def compress(cv, block, counter, length, flags):
    m = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    v = cv + IV[:4] + [counter & 0xFFFFFFFF, counter >> 32, length, flags]

    def g(a, b, c, d, x, y):
        for word, (r1, r2) in ((x, (16, 12)), (y, (8, 7))):
            v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
            v[d] ^= v[a]
            v[d] = (v[d] >> r1 | v[d] << 32 - r1) & 0xFFFFFFFF
            v[c] = (v[c] + v[d]) & 0xFFFFFFFF
            v[b] ^= v[c]
            v[b] = (v[b] >> r2 | v[b] << 32 - r2) & 0xFFFFFFFF

    for _ in range(7):
        for i in range(4):
            g(i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            g(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[8 + 2 * i], m[9 + 2 * i])
        m = [m[p] for p in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data, key=IV, mode=0):
    def chunk(part, counter, root):
        cv = list(key)
        blocks = [part[i : i + 64] for i in range(0, len(part), 64)] or [b""]
        for i, block in enumerate(blocks):
            flags = mode | (CHUNK_START if i == 0 else 0)
            if i == len(blocks) - 1:
                flags |= CHUNK_END | (ROOT if root else 0)
            cv = compress(cv, block, counter, len(block), flags)
        return cv

    def tree(parts, counter, root):
        if len(parts) == 1:
            return chunk(parts[0], counter, root)
        left = 1
        while left * 2 < len(parts):
            left *= 2
        children = tree(parts[:left], counter, False) + tree(parts[left:], counter + left, False)
        flags = mode | PARENT | (ROOT if root else 0)
        return compress(list(key), struct.pack("<16I", *children), 0, 64, flags)

    parts = [data[i : i + 1024] for i in range(0, len(data), 1024)] or [b""]
    return struct.pack("<8I", *tree(parts, 0, True))


def blake3_derive_key(context, material):
    key = list(struct.unpack("<8I", blake3(context, IV, DERIVE_CONTEXT)))
    return blake3(material, key, DERIVE_MATERIAL)


# --- HKDF-SHA-256 (RFC 5869), one block of output ---------------------------------

def hkdf(salt, secret, info):
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


# --- AES-256-GCM (FIPS 197, SP 800-38D) -------------------------------------------

def xtime(a):
    return (a << 1 ^ (0x1B if a & 0x80 else 0)) & 0xFF


def make_sbox():
    p = q = 1
    box = [0x63] * 256
    while True:
        p ^= xtime(p)
        for shift in (1, 2, 4):
            q ^= q << shift & 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = q ^ (q << 1 | q >> 7) ^ (q << 2 | q >> 6) ^ (q << 3 | q >> 5) ^ (q << 4 | q >> 4)
        box[p] = (rotated & 0xFF) ^ 0x63
        if p == 1:
            return box


SBOX = make_sbox()


def expand(key):
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    constant = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = xtime(constant)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word)])
    return [sum(words[i : i + 4], []) for i in range(0, 60, 4)]


def encrypt_block(keys, block):
    state = [a ^ b for a, b in zip(block, keys[0])]
    for number, key in enumerate(keys[1:], 1):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for column in (state[i : i + 4] for i in range(0, 16, 4)):
                whole = column[0] ^ column[1] ^ column[2] ^ column[3]
                mixed += [column[i] ^ whole ^ xtime(column[i] ^ column[(i + 1) % 4]) for i in range(4)]
            state = mixed
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def multiply(x, y):
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def open_gcm(key, nonce, associated, sealed):
    text, tag = sealed[:-16], sealed[-16:]
    keys = expand(key)
    h = int.from_bytes(encrypt_block(keys, bytes(16)), "big")
    lengths = struct.pack(">QQ", len(associated) * 8, len(text) * 8)
    digest = 0
    for part in (associated, text, lengths):
        for i in range(0, len(part), 16):
            digest = multiply(digest ^ int.from_bytes(part[i : i + 16].ljust(16, b"\0"), "big"), h)
    stream = lambda counter: encrypt_block(keys, nonce + struct.pack(">I", counter))
    expected = bytes(a ^ b for a, b in zip(digest.to_bytes(16, "big"), stream(1)))
    assert hmac.compare_digest(expected, tag), "a chunk is not authentic"
    blocks = range(0, len(text), 16)
    return b"".join(bytes(a ^ b for a, b in zip(text[i : i + 16], stream(2 + i // 16))) for i in blocks)


# --- Ed25519 (RFC 8032), verification only ----------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def add(p, q):
    (x1, y1), (x2, y2) = p, q
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + y1 * x2) * pow(1 + product, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P


def times(scalar, point):
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def decompress(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square, "no point of the curve"
    return (P - x if x & 1 != sign else x), y


BASE = decompress((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def check_signature(public, message, signature):
    s = int.from_bytes(signature[32:], "little")
    challenge = hashlib.sha512(signature[:32] + public + message).digest()
    k = int.from_bytes(challenge, "little") % L
    left = times(s, BASE)
    right = add(decompress(signature[:32]), times(k, decompress(public)))
    assert s < L and left == right, "the owner's signature does not hold"


# --- The container -----------------------------------------------------------------

def model_key(sealing_secret, salt, model_id, version):
    info = b"occlude/v1/model-key\0" + bytes([len(model_id)]) + model_id + struct.pack("<Q", version)
    return hkdf(salt, sealing_secret, info)


def read(path, owner_secret):
    file = Path(path).read_bytes()
    header, end = file[:4096], 232
    assert header[:8] == b"OCCLUDE\n", "not a container"
    format_version, suite, size, count, version = struct.unpack_from("<HHIQQ", header, 8)
    assert (format_version, suite) == (1, 1), "a foreign version or suite"
    assert size in [1 << n for n in range(12, 25)] and 1 <= count <= 1 << 22 and version >= 1
    model_id = header[33 : 33 + header[32]]
    assert not any(header[33 + header[32] : 104]) and not any(header[296:])
    owner, salt, commitment, root = (header[i : i + 32] for i in (104, 136, 168, 200))
    assert len(file) == 4096 + count * (size + 16 + 32), "truncated or too long"

    check_signature(owner, b"occlude/v1/container-header\0" + header[:end], header[end:296])
    sealed = [file[4096 + i * (size + 16) :][: size + 16] for i in range(count)]
    digests = file[4096 + count * (size + 16) :]
    assert blake3_derive_key(b"occlude/v1/chunk-digests", digests) == root, "altered digests"
    assert b"".join(blake3(chunk) for chunk in sealed) == digests, "an altered chunk"

    key = model_key(owner_secret[:32], salt, model_id, version)
    context = hashlib.sha256(header[:168]).digest()
    assert hkdf(context, key, b"occlude/v1/key-commitment") == commitment, "a wrong key"
    chunk_key = hkdf(context, key, b"occlude/v1/chunk-key")
    plain = b""
    for i, chunk in enumerate(sealed):
        index = struct.pack("<Q", i)
        plain += open_gcm(chunk_key, bytes(4) + index, context + index, chunk)

    index_length, skeleton_length = struct.unpack_from("<QQ", plain)
    index = json.loads(plain[16 : 16 + index_length])
    skeleton = plain[16 + index_length :][:skeleton_length]
    start = -(-(16 + index_length + skeleton_length) // 4096) * 4096
    tensors = {t["name"]: plain[start + t["offset"] :][: t["length"]] for t in index["tensors"]}
    values = {
        "owner": owner,
        "id": model_id.decode(),
        "version": version,
        "chunk_size": size,
        "salt": salt.hex(),
        "model_key": key.hex(),
        "context": context.hex(),
        "key_commitment": commitment.hex(),
        "tree_root": root.hex(),
        "header_digest": hashlib.sha256(header[:end]).hexdigest(),
    }
    return values, skeleton, tensors


def main():
    assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    folder = Path(__file__).resolve().parent
    vector = json.loads((folder / "vector.json").read_text())
    secret = bytes.fromhex(vector["owner_secret"])
    values, skeleton, tensors = read(folder / "sealed.occ", secret)
    for name in values.keys() & vector.keys():
        assert values[name] == vector[name], name
    plain = (folder / "plain.onnx").read_bytes()
    assert list(tensors) == ["scale", "offset"], "the order of first use"
    assert all(len(values) == 2400 and values in plain for values in tensors.values())
    assert b"occlude" in skeleton and len(skeleton) < 1024
    print(f"the vector holds: {len(tensors)} tensors, header {values['header_digest']}")


if __name__ == "__main__":
    sys.exit(main())
