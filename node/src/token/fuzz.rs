//! Tokens and keys, damaged: none is taken that was not signed, and each that is refused is refused with a
//! reason that repeats nothing of it.

use std::{fs, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use littoral::testing::fuzz::{Fuzz, cases};
use serde_json::json;
use tempfile::TempDir;

use super::{tests::*, *};

const WORDS: [&str; 20] = [
    "none", "EdDSA", "ES256", "RS256", "HS256", "alg", "kid", "crit", "exp", "nbf", "sub",
    "littoral", "read", "*", "-1", "1e999", "null", "..", "=", "é",
];

#[test]
fn a_damaged_token_is_worth_nothing() {
    let directory = TempDir::new().unwrap();
    let (private, public) = new_key().unwrap();
    let files = vec![file(&directory, "ed.pem", &public), file(&directory, "rsa.pem", RSA_PUBLIC)];
    let verifier = verifier(files);
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let tokens = vec![
        issue(&claims(json!({})), private.as_bytes()).unwrap(),
        issue(&claims(json!({ "nbf": 1, "littoral": { "insert": ["b"] } })), private.as_bytes())
            .unwrap(),
        signed_by_rsa(&header),
    ];
    assert!(tokens.iter().all(|token| verifier.verify(token).is_ok()));
    let bytes: Vec<Vec<u8>> = tokens.iter().map(|token| token.clone().into_bytes()).collect();
    let mut fuzz = Fuzz::new(5);
    for case in 0..cases(4000) {
        let token = match fuzz.below(4) {
            // Header and claims are said anew, and the signature stays.
            0 => {
                let signature = fuzz.pick(&tokens).rsplit_once('.').unwrap().1.to_owned();
                let header = fuzz.text(&[r#"{"alg":"EdDSA","typ":"JWT"}"#.to_owned()], &WORDS);
                let claims =
                    format!(r#"{{"exp":{LATER},"sub":"alice","littoral":{{"read":["a"]}}}}"#);
                let claims = fuzz.text(&[claims], &WORDS);
                let part = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
                format!("{}.{}.{signature}", part(header), part(claims))
            }
            1 => fuzz.text(&tokens, &WORDS),
            _ => String::from_utf8_lossy(&fuzz.bytes(&bytes)).into_owned(),
        };
        match verifier.verify(&token) {
            Ok(_) => assert!(tokens.contains(&token), "case {case}: {token:?} is taken"),
            Err(refused) => {
                let told = refused.to_string();
                assert!(!told.is_empty() && told.len() < 500, "case {case}: {told}");
            }
        }
    }
    assert!(tokens.iter().all(|token| verifier.verify(token).is_ok()));
}

#[test]
fn a_damaged_key_is_refused_with_its_file_or_is_a_key() {
    let directory = TempDir::new().unwrap();
    let (_, public) = new_key().unwrap();
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let set = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "x": x, "kid": "one", "use": "sig" },
        { "kty": "EC", "crv": "P-256", "x": x, "y": x, "alg": "ES256" },
        { "kty": "RSA", "n": "AQAB", "e": "AQAB" },
    ] });
    let corpus = vec![public, RSA_PUBLIC.to_owned(), set.to_string()];
    let mut fuzz = Fuzz::new(6);
    for case in 0..cases(1000) {
        let text = fuzz.text(&corpus, &WORDS);
        let path = directory.path().join("key");
        fs::write(&path, &text).unwrap();
        if let Err(error) = Verifier::new(vec![path], None, None, Duration::ZERO) {
            let told = error.to_string();
            assert!(told.contains("key: expected") && told.len() < 1000, "case {case}: {told}");
        }
    }
}
