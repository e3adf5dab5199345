"""Another issuer, which knows nothing of Occlude: a key, and a token by RFC 7519 and RFC 8037.

Writes the public half and the token to the files that are named."""

import base64
import json
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

public_file, token_file, issuer, subject, audience = sys.argv[1:]
key = Ed25519PrivateKey.generate()
public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
Path(public_file).write_bytes(public)


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


claims = {"iss": issuer, "sub": subject, "aud": [audience, "another"], "exp": int(time.time()) + 600}
signed = ".".join(part(json.dumps(value).encode()) for value in ({"alg": "EdDSA"}, claims))
Path(token_file).write_text(f"{signed}.{part(key.sign(signed.encode()))}\n")
