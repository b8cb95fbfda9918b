//! Tokens to join with and what is sent with them, damaged: nobody gets a certificate but who has the secret,
//! and each that is refused is told why in few words.

use littoral::{
    ClusterId, NodeId,
    testing::fuzz::{Fuzz, cases},
};
use parking_lot::Mutex;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    signer::{Ask, answer},
    *,
};

const WORDS: [&str; 14] = [
    "secret", "request", "node", "cluster", "at", "ca", "v", "..", "/", "\0", "-1", "1e999",
    "null", "é",
];

/// An authority, and who it has invited.
fn home() -> (TempDir, AuthorityHome, Token) {
    let directory = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId(7)).unwrap();
    let home = AuthorityHome::create(&directory.path().join("ca"), authority).unwrap();
    let node = NodeId::new("edge3").unwrap();
    let invitation = Invitation::new(&node, now() + 3600, 30, false, vec![]);
    let token = home.invite("10.0.0.1:4500", &invitation).unwrap();
    (directory, home, token)
}

#[test]
fn a_damaged_join_token_is_refused_in_few_words_or_can_be_used() {
    let (_directory, home, token) = home();
    let text = token.to_text().unwrap();
    let inside = serde_json::to_string(&token).unwrap();
    let bytes = vec![text.clone().into_bytes()];
    let mut fuzz = Fuzz::new(11);
    let (mut read, mut refused) = (0, 0);
    for case in 0..cases(4000) {
        let damaged = match fuzz.below(3) {
            // What it says is another, and it is copied well.
            0 => Token::text_of(fuzz.text(std::slice::from_ref(&inside), &WORDS).as_bytes()),
            1 => fuzz.text(std::slice::from_ref(&text), &WORDS),
            _ => String::from_utf8_lossy(&fuzz.bytes(&bytes)).into_owned(),
        };
        let parsed = Token::parse(&damaged).and_then(|token| {
            token.cluster()?;
            Ok(token)
        });
        match parsed {
            Ok(token) => {
                read += 1;
                let again = Token::parse(&token.to_text().unwrap()).unwrap();
                assert_eq!(again, token, "case {case}: {damaged}");
            }
            Err(error) => {
                refused += 1;
                let told = format!("{error:#}");
                assert!(!told.is_empty() && told.len() < 200, "case {case}: {told}");
                assert!(!told.contains(&token.secret), "case {case}: {told}");
            }
        }
    }
    assert!(read > 10 && refused > 10, "{read} were read, {refused} refused");
    assert!(home.invitation(&token.secret).unwrap().is_some());
}

#[test]
fn a_damaged_wish_for_a_certificate_gets_none() {
    let (_directory, home, token) = home();
    let request = |key: &KeyPair| pki::signing_request(key).unwrap();
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ask = |secret: &str, key: &KeyPair| {
        serde_json::to_string(&Ask { secret: secret.to_owned(), request: request(key) }).unwrap()
    };
    let home = Mutex::new(home);
    let good = ask(&token.secret, &first);
    let corpus = vec![good.clone(), ask(&"cd".repeat(32), &second), json!([]).to_string()];
    let bytes: Vec<Vec<u8>> = corpus.iter().map(|ask| ask.clone().into_bytes()).collect();
    // The first to use it is the only one.
    let signed = answer(&home, &good).unwrap().unwrap();
    let mut fuzz = Fuzz::new(12);
    let (mut again, mut refused) = (0, 0);
    for case in 0..cases(1000) {
        let line = match fuzz.below(3) {
            0 => fuzz.text(&corpus, &WORDS),
            _ => String::from_utf8_lossy(&fuzz.bytes(&bytes)).into_owned(),
        };
        match answer(&home, &line).unwrap() {
            Ok(given) => {
                again += 1;
                // Damage that changes neither secret nor key, such as a space.
                let line: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(line["secret"], *token.secret, "case {case}");
                assert_eq!(given.certificate, signed.certificate, "case {case}");
            }
            Err(no) => {
                refused += 1;
                assert!(!no.refused.is_empty() && no.refused.len() < 200, "case {case}: {no:?}");
            }
        }
    }
    assert!(refused > 10, "{again} were answered, {refused} refused");
    assert_eq!(home.lock().issued().unwrap().len(), 1, "one certificate was issued");
    let second = answer(&home, &ask(&token.secret, &second)).unwrap().unwrap_err();
    assert_eq!(second.refused, "the token was used already");
}
