//! [`ask_to_be_signed`]: what a machine that joins with a token sends to the authority, and what it checks.
//!
//! It talks only to whoever shows the certificate whose hash is in the token, or one that this has issued to
//! its signer; so nobody else learns the secret. Its private key stays where it is.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use rcgen::KeyPair;
use rustls::{ClientConfig, pki_types::ServerName, version::TLS13};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Token,
    signer::{ALPN, Ask, LINE_BYTES_MAX, No, Signed},
};
use crate::{
    cli::OrHint as _,
    pinned::{Expected, Pinned},
    pki,
};

/// How long it waits for the authority.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// A new private key, PEM.
pub(crate) fn new_key() -> anyhow::Result<String> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Why there is no certificate.
#[derive(Debug)]
pub(crate) enum Unsigned {
    /// The authority has made none for this key.
    Never(anyhow::Error),
    /// It may have made one, and gives it to whoever asks again with the key.
    Perhaps(anyhow::Error),
}

/// Asks the authority for a certificate for a key.
pub(crate) async fn ask_to_be_signed(token: &Token, key: &str) -> Result<Signed, Unsigned> {
    let connecting = timeout(TIME_LIMIT, connect(token)).await;
    let stream = connecting.unwrap_or_else(|_| Err(silent(token))).map_err(Unsigned::Never)?;
    let answer = match timeout(TIME_LIMIT, ask(token, key, stream)).await {
        Ok(answer) => answer.map_err(Unsigned::Perhaps)?,
        Err(_) => return Err(Unsigned::Perhaps(silent(token))),
    };
    if let Ok(No { refused }) = serde_json::from_slice(&answer) {
        let refused = Err(anyhow!("the authority at {} refuses: {refused}", token.at));
        return refused
            .or_hint("`littoral ca invite` makes another token")
            .map_err(Unsigned::Never);
    }
    judge(token, &answer).map_err(Unsigned::Perhaps)
}

fn silent(token: &Token) -> anyhow::Error {
    anyhow!("{} did not answer within {} s", token.at, TIME_LIMIT.as_secs())
}

/// Whether what the authority gave is what was asked for.
fn judge(token: &Token, answer: &[u8]) -> anyhow::Result<Signed> {
    let signed: Signed = serde_json::from_slice(answer).context("the answer cannot be read")?;
    let cluster = token.cluster()?;
    let facts = pki::facts_of_pem(&signed.certificate, cluster)?;
    if facts.node.as_str() != token.node || signed.node != token.node {
        bail!("the authority gave a certificate of {}, not of {}", facts.node, token.node);
    }
    if pki::fingerprint(&signed.ca)? != token.ca {
        bail!("the authority gave another certificate of itself than the one in the token");
    }
    Ok(signed)
}

async fn connect(token: &Token) -> anyhow::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned::new(Expected::Authority(token.ca.clone()));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let at = &token.at;
    let stream = TcpStream::connect(at)
        .await
        .with_context(|| format!("cannot connect to {at}"))
        .or_hint("does `littoral ca serve` run there?")?;
    let name = ServerName::try_from(pki::signer_name(token.cluster()?))?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .with_context(|| format!("{at} does not show that it is the authority that made the token"))
}

async fn ask(
    token: &Token,
    key: &str,
    mut stream: TlsStream<TcpStream>,
) -> anyhow::Result<Vec<u8>> {
    let key = KeyPair::from_pem(key).context("the node's private key cannot be read")?;
    let request = pki::signing_request(&key)?;
    let mut line = serde_json::to_string(&Ask { secret: token.secret.clone(), request })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LINE_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
