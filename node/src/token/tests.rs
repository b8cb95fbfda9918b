//! Tokens that are worth something, and many that are not.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const RSA_PRIVATE: &str = include_str!("fixtures/rsa.key");
pub(super) const RSA_PUBLIC: &str = include_str!("fixtures/rsa.pem");

/// Far enough.
pub(super) const LATER: u64 = 4_000_000_000;

pub(super) fn file(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

pub(super) fn verifier(files: Vec<PathBuf>) -> Verifier {
    Verifier::new(files, None, None, Duration::from_secs(30)).unwrap()
}

/// `HEADER.CLAIMS` of a token, to be signed.
fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn with(message: String, signature: &[u8]) -> String {
    message + "." + &BASE64_URL_SAFE_NO_PAD.encode(signature)
}

pub(super) fn claims(more: Value) -> Claims {
    let mut all = json!({ "exp": LATER, "sub": "alice", "littoral": { "read": ["a"] } });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

pub(super) fn signed_by_rsa(header: &Value) -> String {
    let der = PrivatePkcs8KeyDer::from_pem_slice(RSA_PRIVATE.as_bytes()).unwrap();
    let key = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
    let message = unsigned(header, &json!({ "exp": LATER, "littoral": { "read": "*" } }));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    with(message, &signature)
}

#[test]
fn each_algorithm_is_checked_with_its_own_keys() {
    let directory = TempDir::new().unwrap();
    let (ed_private, ed_public) = new_key().unwrap();
    let ec = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let verifier = verifier(vec![
        file(&directory, "ed.pem", &ed_public),
        file(&directory, "ec.pem", &ec.public_key_pem()),
        file(&directory, "rsa.pem", RSA_PUBLIC),
    ]);
    let eddsa = issue(&claims(json!({})), ed_private.as_bytes()).unwrap();
    let bearer = verifier.verify(&eddsa).unwrap();
    assert_eq!(bearer.claims.sub.as_deref(), Some("alice"));
    assert!(bearer.grants.read.holds("A") && !bearer.grants.insert.holds("a"));
    assert!(std::ptr::eq(&*bearer, &*verifier.verify(&eddsa).unwrap()), "it was checked before");

    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ec.serialize_der(), &random)
            .unwrap();
    let message = unsigned(&json!({ "alg": "ES256" }), &json!({ "exp": LATER }));
    let signature = key.sign(&random, message.as_bytes()).unwrap();
    let es256 = with(message, signature.as_ref());
    assert_eq!(*verifier.verify(&es256).unwrap().grants, Grants::default());

    verifier.verify(&signed_by_rsa(&json!({ "alg": "RS256" }))).unwrap();
    // The same signature under other names.
    for algorithm in ["RS384", "PS256", "HS256", "none", "None", "EdDSA", "ES256"] {
        let refused = verifier.verify(&signed_by_rsa(&json!({ "alg": algorithm }))).unwrap_err();
        assert!(
            matches!(refused, Refused::Algorithm | Refused::Signature),
            "{algorithm}: {refused}"
        );
    }
}

/// `cat old.pem new.pem > token.pem`, for the time in which keys are changed.
#[test]
fn all_keys_of_a_file_count() {
    let directory = TempDir::new().unwrap();
    let keys: Vec<_> = (0..2).map(|_| new_key().unwrap()).collect();
    let tokens: Vec<_> =
        keys.iter().map(|(key, _)| issue(&claims(json!({})), key.as_bytes()).unwrap()).collect();
    let [old, new] = [&*keys[0].1, &*keys[1].1];
    for (name, text) in [
        ("lines.pem", format!("{old}{new}")),
        ("windows.pem", format!("the old one\n{old}\nthe new one\n{new}").replace('\n', "\r\n")),
        // The last line of the first file has no end.
        ("glued.pem", format!("{}{}", old.trim_end(), new.trim_end())),
        ("kinds.pem", format!("{RSA_PUBLIC}{old}{new}")),
    ] {
        let verifier = verifier(vec![file(&directory, name, &text)]);
        for token in &tokens {
            verifier.verify(token).unwrap_or_else(|refused| panic!("{name}: {refused}"));
        }
    }
    let refused = |text: &str| {
        let files = vec![file(&directory, "refused.pem", text)];
        Verifier::new(files, None, None, Duration::ZERO).unwrap_err().to_string()
    };
    let broken = new.replace("MC", "!!");
    assert!(refused(&format!("{old}{broken}")).contains("part 2 of 2: it is none of them"));
    let cut = &new[..new.find("-----END").unwrap()];
    assert!(refused(&format!("{cut}{old}")).contains("part 1 of 2 has no END line"));
    assert!(refused(&format!("{old}{}", keys[0].0)).contains("it is a private key"));
    let many = refused(&old.repeat(65));
    assert!(many.contains("it has 65 keys, and 64 are allowed"), "{many}");
}

/// A public key is no secret, so it must not serve as one.
#[test]
fn a_public_key_signs_nothing() {
    let directory = TempDir::new().unwrap();
    let verifier = verifier(vec![file(&directory, "rsa.pem", RSA_PUBLIC)]);
    let message = unsigned(&json!({ "alg": "HS256" }), &json!({ "exp": LATER }));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, RSA_PUBLIC.as_bytes());
    let token = with(message.clone(), ring::hmac::sign(&key, message.as_bytes()).as_ref());
    assert_eq!(verifier.verify(&token).unwrap_err(), Refused::Algorithm);
    let none = unsigned(&json!({ "alg": "none" }), &json!({ "exp": LATER }));
    assert_eq!(verifier.verify(&format!("{none}.")).unwrap_err(), Refused::Algorithm);
    assert_eq!(verifier.verify(&none).unwrap_err(), Refused::Malformed);
}

#[test]
fn what_is_not_valid_now_and_here_is_refused() {
    let directory = TempDir::new().unwrap();
    let (private, public) = new_key().unwrap();
    let file = file(&directory, "ed.pem", &public);
    let verifier =
        Verifier::new(vec![file], Some("me"), Some("shop"), Duration::from_secs(30)).unwrap();
    let good = json!({ "iss": "me", "aud": "shop" });
    let token = |more: Value| {
        let mut all = good.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        issue(&claims(all), private.as_bytes()).unwrap()
    };
    verifier.verify(&token(json!({}))).unwrap();
    verifier.verify(&token(json!({ "aud": ["other", "shop"] }))).unwrap();
    assert_eq!(verifier.verify(&token(json!({ "exp": 1 }))).unwrap_err(), Refused::Expired);
    assert_eq!(verifier.verify(&token(json!({ "iss": "you" }))).unwrap_err(), Refused::Issuer);
    assert_eq!(verifier.verify(&token(json!({ "aud": "bank" }))).unwrap_err(), Refused::Audience);
    let missing = issue(&claims(json!({ "iss": "me" })), private.as_bytes()).unwrap();
    assert_eq!(
        verifier.verify(&missing).unwrap_err(),
        Refused::Claims("aud is missing".to_owned())
    );
    let (other, _) = new_key().unwrap();
    let forged = issue(&claims(good.clone()), other.as_bytes()).unwrap();
    assert_eq!(verifier.verify(&forged).unwrap_err(), Refused::Signature);
    let token = token(json!({}));
    let (head, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = head.split_once('.').unwrap();
    let richer = json!({ "exp": LATER, "iss": "me", "aud": "shop", "littoral": { "read": "*" } });
    let richer = BASE64_URL_SAFE_NO_PAD.encode(richer.to_string());
    let changed = format!("{header}.{richer}.{signature}");
    assert_eq!(verifier.verify(&changed).unwrap_err(), Refused::Signature);
    for token in ["", "a", "a.b.c", "....", &"x".repeat(100_000)] {
        assert_eq!(verifier.verify(token).unwrap_err(), Refused::Malformed, "{token:.9}");
    }
}

#[test]
fn sets_of_keys_are_read_and_their_ids_kept_to() {
    let directory = TempDir::new().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let x = BASE64_URL_SAFE_NO_PAD.encode(key.public_key_raw());
    let set = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "x": x, "kid": "one", "use": "sig", "alg": "EdDSA" },
        { "kty": "oct", "k": "c2VjcmV0", "kid": "secret" },
    ]});
    let verifier = verifier(vec![file(&directory, "jwks.json", &set.to_string())]);
    let sign = |id: &str| {
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.kid = Some(id.to_owned());
        let private = key.serialize_pem();
        let private = jsonwebtoken::EncodingKey::from_ed_pem(private.as_bytes()).unwrap();
        jsonwebtoken::encode(&header, &claims(json!({})), &private).unwrap()
    };
    verifier.verify(&sign("one")).unwrap();
    assert_eq!(verifier.verify(&sign("two")).unwrap_err(), Refused::Algorithm);
}

#[test]
fn files_that_hold_no_public_key_are_refused() {
    let directory = TempDir::new().unwrap();
    let (private, _) = new_key().unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (text, why) in [
        (private.as_str(), "private key"),
        (p384.public_key_pem().as_str(), "P-256"),
        ("nothing", "none of them"),
        (r#"{"keys": []}"#, "no key"),
        ("{", "EOF"),
    ] {
        let file = file(&directory, "key", text);
        let error = Verifier::new(vec![file], None, None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

fn access(json: &str) -> Result<Access, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn nothing_is_granted_that_is_not_said() {
    assert_eq!(access("{}").unwrap().grants(), Grants::default());
    let claims: Claims = serde_json::from_str(r#"{"exp": 1, "a": "rw"}"#).unwrap();
    assert_eq!(claims.littoral.grants(), Grants::default());
}

#[test]
fn write_stands_for_three_rights() {
    let grants = access(r#"{"write": ["Cart"], "delete": ["log"]}"#).unwrap().grants();
    assert!(grants.insert.holds("cart") && grants.update.holds("CART"));
    assert!(grants.delete.holds("cart") && grants.delete.holds("log"));
    assert!(!grants.read.holds("cart") && !grants.insert.holds("log"));
    assert_eq!(access(r#"{"read": "*"}"#).unwrap().grants().read, TableSet::All);
}

#[test]
fn a_right_that_there_is_not_is_an_error() {
    for json in [r#"{"raed": ["a"]}"#, r#"{"read": "a"}"#, r#"{"read": 1}"#, r#"{"schema": "*"}"#] {
        assert!(access(json).is_err(), "{json}");
    }
}
