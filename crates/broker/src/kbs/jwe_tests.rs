//! Vectors of RFC 7518, RFC 7516 and RFC 3394, messages made by another
//! implementation (joserfc 1.x), and one case per malformation.

use proptest::prelude::*;

use super::*;

fn base64url(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

fn p256_key(d: &str) -> TeeKey {
    TeeKey(Secret::P256(
        p256::SecretKey::from_slice(&base64url(d)).unwrap(),
    ))
}

fn p521_key(d: &str) -> TeeKey {
    TeeKey(Secret::P521(
        p521::SecretKey::from_slice(&base64url(d)).unwrap(),
    ))
}

fn compact(text: &str) -> Jwe {
    let parts: Vec<&str> = text.split('.').collect();
    let [protected, encrypted_key, iv, ciphertext, tag] = parts[..] else {
        panic!("a compact JWE has five parts");
    };
    Jwe {
        protected: protected.to_owned(),
        encrypted_key: encrypted_key.to_owned(),
        iv: iv.to_owned(),
        ciphertext: ciphertext.to_owned(),
        tag: tag.to_owned(),
    }
}

/// RFC 7518, appendix C: Alice's ephemeral key, Bob's static key.
#[test]
fn the_key_agreement_is_that_of_rfc_7518_appendix_c() {
    let alice = p256_key("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
    assert_eq!(
        alice.coordinates().1,
        "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0"
    );
    let bob = RecipientKey::from_coordinates(
        "P-256",
        "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
        "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
    )
    .unwrap();
    let shared = alice.agree(&bob).unwrap();
    assert_eq!(
        shared.as_slice(),
        [
            158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49,
            110, 163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196
        ]
    );
    let key: Zeroizing<[u8; 16]> = derive(&shared, "A128GCM", b"Alice", b"Bob");
    assert_eq!(URL_SAFE_NO_PAD.encode(*key), "VqqN6vgjbSBcIijNcacQGg");
}

/// RFC 7516, appendix A.1: the content encryption of the first example.
#[test]
fn the_content_encryption_is_that_of_rfc_7516_appendix_a_1() {
    let content_key = [
        177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7, 110,
        91, 112, 46, 34, 105, 47, 130, 203, 46, 122, 234, 64, 252,
    ];
    let mut content = b"The true sign of intelligence is not knowledge but imagination.".to_vec();
    let iv: [u8; 12] = exact("48V1_ALb6US04U3b", "iv").unwrap();
    let tag = Aes256Gcm::new((&content_key).into())
        .encrypt_inout_detached(
            &iv.into(),
            b"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ",
            content.as_mut_slice().into(),
        )
        .unwrap();
    assert_eq!(
        URL_SAFE_NO_PAD.encode(content),
        "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A"
    );
    assert_eq!(URL_SAFE_NO_PAD.encode(tag), "XFBoMYUZodetZdvTiFvSkQ");
}

/// RFC 3394, section 4.6: 256 bits of key data with a 256-bit key.
#[test]
fn the_key_wrapping_is_that_of_rfc_3394() {
    let key: [u8; 32] = std::array::from_fn(|index| index as u8);
    let data =
        hex::decode("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f").unwrap();
    let mut wrapped = [0; WRAPPED_KEY_LENGTH];
    KwAes256::new((&key).into())
        .wrap_key(&data, &mut wrapped)
        .unwrap();
    assert_eq!(
        hex::encode(wrapped),
        "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
    );
}

/// RFC 7517, appendix A.1: the public key of the first example.
#[test]
fn the_public_key_of_rfc_7517_is_accepted() {
    RecipientKey::from_coordinates(
        "P-256",
        "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    )
    .unwrap();
}

#[test]
fn messages_of_another_implementation_are_opened() {
    let plaintext: Vec<u8> = (0..32).collect();
    let p256 = p256_key("FG9yyPRViMIXoEqWM1xAx-ZBjFjKWXjA2kdRdnXLP54");
    let message = compact(concat!(
        "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJ4I",
        "joiazRWdFZQUmNnOTM4SWVnMjlFdWlGLW85TTVvMjhxdWNMVzEzYlpGRGRfYyIsInkiOiJGcWozeXFsNy15OH",
        "diMzVXNXNMZUlMU21QMldDY1k3T1dKV1o0ZTRQenY4Iiwia3R5IjoiRUMifX0.0Z9Be0zf5XL_ck4wm76Byw",
        "CeL08_MnNlUelxQpXLZUBF-l_hzF5Ouw.AQauEZdExp0QL6gg.lVzQgfHPD7zV1lhPdOi3Q983CBk8QMA_y0",
        "iAc1mtM4U.ruhMpBGz7s7pMEYs9fbiMQ"
    ));
    assert_eq!(p256.open(&message).unwrap().as_slice(), plaintext);
    let p521 = p521_key(
        "AfNpSj3bWEvtb732Kb8MktB5MQIgYMjJ_7TFfrhnictJh42F0XQ_LFaeuSTaJFHQijUtKmKU8qJQneLyQ-xRKrOh",
    );
    let message = compact(concat!(
        "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC01MjEiLCJ4I",
        "joiQUdkUTVIWjlENkV5ajBRcGxfWi10cFNMM2R0d2tnVXdzVU0wVFEtVVRCd1k1RmV2UVJsazFrZEZIRFN4ND",
        "hoN01iZW9VVHdMa3d4Yk9yU2hDbVhQRlg1LSIsInkiOiJBQ3Z4bHBKZkFZaGtqbVdvM2JWNm42TzJJLU5ZREx",
        "5SngxVDlYOTBWYmFYWlRaSWdQYlVvUG5XZ2NPcDUzYzh6NHhkYVJ2VWlPdVhuUVNxWnpfZWNxbHBIIiwia3R5",
        "IjoiRUMifX0.MF9f9U71OKaQaj-Vt8PDaRXWcURi7YLHghF5L9wV2Wy-Vejn5MAZ9Q.xaZTrDL2jZ9mCHbz.4",
        "EYEDSiTvhecHjW2Cu5ssURntA-sFS0vtuYzhKeXKsI.m40ix0lh2SZoybaoLATbFg"
    ));
    assert_eq!(p521.open(&message).unwrap().as_slice(), plaintext);
}

fn sealed(curve: Curve) -> (TeeKey, Jwe) {
    let key = TeeKey::generate(curve);
    let message = RecipientKey::try_from(&key.public())
        .unwrap()
        .seal(&[7; 32]);
    (key, message)
}

#[test]
fn what_is_sealed_to_a_key_opens_with_it_and_with_no_other() {
    for curve in [Curve::P256, Curve::P521] {
        let (key, message) = sealed(curve);
        let json = serde_json::to_string(&message).unwrap();
        let message: Jwe = serde_json::from_str(&json).unwrap();
        assert_eq!(key.open(&message).unwrap().as_slice(), [7; 32]);
        assert_eq!(
            TeeKey::generate(curve).open(&message),
            Err(JweError::Inauthentic)
        );
    }
}

#[test]
fn the_protected_header_reads_as_trustees_clients_write_it() {
    let (_, message) = sealed(Curve::P256);
    let as_trustee: kbs_types::Response =
        serde_json::from_value(serde_json::to_value(&message).unwrap()).unwrap();
    assert_eq!(
        as_trustee.protected.generate_aad().unwrap(),
        message.protected.as_bytes()
    );
}

#[test]
fn an_altered_field_is_not_authentic() {
    let (key, message) = sealed(Curve::P256);
    let flip = |text: &str| {
        let mut bytes = base64url(text);
        bytes[3] ^= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let header = String::from_utf8(base64url(&message.protected)).unwrap();
    let spaced = URL_SAFE_NO_PAD.encode(header.replacen(',', ", ", 1));
    for altered in [
        Jwe {
            protected: spaced,
            ..message.clone()
        },
        Jwe {
            encrypted_key: flip(&message.encrypted_key),
            ..message.clone()
        },
        Jwe {
            iv: flip(&message.iv),
            ..message.clone()
        },
        Jwe {
            ciphertext: flip(&message.ciphertext),
            ..message.clone()
        },
        Jwe {
            tag: flip(&message.tag),
            ..message.clone()
        },
    ] {
        assert_eq!(key.open(&altered), Err(JweError::Inauthentic));
    }
}

#[test]
fn fields_of_the_wrong_length_are_malformed() {
    let (key, message) = sealed(Curve::P256);
    let short = || "AAAA".to_owned();
    for (field, altered) in [
        (
            "encrypted_key",
            Jwe {
                encrypted_key: short(),
                ..message.clone()
            },
        ),
        (
            "iv",
            Jwe {
                iv: short(),
                ..message.clone()
            },
        ),
        (
            "tag",
            Jwe {
                tag: short(),
                ..message.clone()
            },
        ),
        (
            "ciphertext",
            Jwe {
                ciphertext: "A".repeat(8192),
                ..message.clone()
            },
        ),
        (
            "protected",
            Jwe {
                protected: short(),
                ..message.clone()
            },
        ),
    ] {
        assert_eq!(key.open(&altered), Err(JweError::Malformed { field }));
    }
}

#[test]
fn other_algorithms_and_critical_extensions_are_refused() {
    let (key, message) = sealed(Curve::P256);
    let header = String::from_utf8(base64url(&message.protected)).unwrap();
    for (from, to, expected) in [
        ("ECDH-ES+A256KW", "RSA1_5", ("alg", "RSA1_5", ALGORITHM)),
        (
            "A256GCM",
            "A128CBC-HS256",
            ("enc", "A128CBC-HS256", ENCRYPTION),
        ),
        ("P-256", "P-521", ("epk.crv", "P-521", "P-256")),
        ("\"EC\"", "\"OKP\"", ("epk.kty", "OKP", "EC")),
        (
            "{\"alg\"",
            "{\"crit\":[\"x\"],\"alg\"",
            ("crit", "present", "absent"),
        ),
        (
            "{\"alg\"",
            "{\"zip\":\"DEF\",\"alg\"",
            ("zip", "present", "absent"),
        ),
    ] {
        let altered = Jwe {
            protected: URL_SAFE_NO_PAD.encode(header.replacen(from, to, 1)),
            ..message.clone()
        };
        let (field, found, expected) = expected;
        assert_eq!(
            key.open(&altered),
            Err(JweError::UnsupportedHeader {
                field,
                found: found.to_owned(),
                expected
            })
        );
    }
}

#[test]
fn a_key_off_the_curve_of_the_wrong_length_or_of_another_kind_is_refused() {
    let TeePubKey::EC { x, y, .. } = TeeKey::generate(Curve::P256).public() else {
        unreachable!("an EC key was generated");
    };
    let refusal = |crv: &str, alg: &str, x: &str, y: &str| {
        RecipientKey::try_from(&TeePubKey::EC {
            crv: crv.to_owned(),
            alg: alg.to_owned(),
            x: x.to_owned(),
            y: y.to_owned(),
        })
        .unwrap_err()
    };
    let off = JweError::NotOnCurve { curve: "P-256" };
    assert_eq!(refusal("P-256", ALGORITHM, &y, &x), off);
    assert_eq!(refusal("P-256", ALGORITHM, &x, "AAAA"), off);
    assert_eq!(
        refusal("P-521", ALGORITHM, &x, &y),
        JweError::NotOnCurve { curve: "P-521" }
    );
    assert_eq!(
        refusal("secp256k1", ALGORITHM, &x, &y),
        JweError::UnsupportedKey {
            found: "on the curve \"secp256k1\"".to_owned()
        }
    );
    assert_eq!(
        refusal("P-256", "RSA1_5", &x, &y),
        JweError::UnsupportedKey {
            found: "an EC key for \"RSA1_5\"".to_owned()
        }
    );
}

proptest! {
    #[test]
    fn arbitrary_messages_are_refused_without_panicking(
        fields in proptest::array::uniform5("[A-Za-z0-9_-]{0,80}")
    ) {
        let [protected, encrypted_key, iv, ciphertext, tag] = fields;
        let message = Jwe { protected, encrypted_key, iv, ciphertext, tag };
        prop_assert!(TeeKey::generate(Curve::P256).open(&message).is_err());
    }
}
