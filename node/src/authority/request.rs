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
use tokio_rustls::TlsConnector;

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

/// Asks the authority for a certificate for a key.
pub(crate) async fn ask_to_be_signed(token: &Token, key: &str) -> anyhow::Result<Signed> {
    let key = KeyPair::from_pem(key).context("the node's private key cannot be read")?;
    let request = pki::signing_request(&key)?;
    let ask = Ask { secret: token.secret.clone(), request };
    let answer = match timeout(TIME_LIMIT, exchange(token, &ask)).await {
        Ok(answer) => answer?,
        Err(_) => bail!("{} did not answer within {} s", token.at, TIME_LIMIT.as_secs()),
    };
    if let Ok(No { refused }) = serde_json::from_slice(&answer) {
        return Err(anyhow!("the authority at {} refuses: {refused}", token.at))
            .or_hint("`littoral ca invite` makes another token");
    }
    let signed: Signed = serde_json::from_slice(&answer).context("the answer cannot be read")?;
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

async fn exchange(token: &Token, ask: &Ask) -> anyhow::Result<Vec<u8>> {
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
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.with_context(|| {
            format!("{at} does not show that it is the authority that made the token")
        })?;
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LINE_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
