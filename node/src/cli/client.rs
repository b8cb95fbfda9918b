//! A small HTTP client for the commands that talk to a running node.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use super::OrHint as _;
use crate::config::Config;

/// Longer than any statement may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The variable of the environment that holds the token, for nodes that want one.
const TOKEN_VARIABLE: &str = "LITTORAL_TOKEN";

/// Which node to talk to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// Address of the node's HTTP server. A token for it is taken from the variable LITTORAL_TOKEN.
    #[arg(long, value_name = "http://HOST:PORT")]
    url: Option<String>,
    /// Configuration of a node on this machine.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Target {
    /// `HOST:PORT` of the node.
    fn authority(&self) -> anyhow::Result<String> {
        if let Some(url) = &self.url {
            let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
            return authority
                .filter(|authority| !authority.is_empty() && !authority.contains('/'))
                .map(str::to_owned)
                .ok_or_else(|| anyhow!("--url {url}: expected http://HOST:PORT"));
        }
        let path = self.config.as_ref().context("one of --url and --config is needed")?;
        let config = Config::load(path)?;
        let http = config.http.ok_or_else(|| anyhow!("this node serves no HTTP"))?;
        if http.listen.port() == 0 {
            return Err(anyhow!("the configuration lets the system choose the port"))
                .or_hint("give the address that `littoral serve` printed as --url");
        }
        Ok(reachable(http.listen).to_string())
    }

    /// What the node says of itself.
    pub(super) async fn status(&self) -> anyhow::Result<Value> {
        self.ask_for(Method::GET, "/status").await
    }

    /// Asks the node for something that it grants or refuses.
    pub(super) async fn ask_for(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        let (code, answer) = self.ask(method, path, None).await?;
        if !code.is_success() {
            bail!("the node answered {code}: {}", answer["message"].as_str().unwrap_or_default());
        }
        Ok(answer)
    }

    /// Asks the node; the answer is its status and JSON.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let authority = self.authority()?;
        let exchange = exchange(&authority, method, path, body);
        match timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!("{authority} did not answer within {} s", TIMEOUT.as_secs()),
        }
    }
}

/// Where to connect to a server that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        other => other.ip(),
    };
    SocketAddr::new(ip, address.port())
}

async fn exchange(
    authority: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(StatusCode, Value)> {
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("cannot connect to {authority}"))
        .or_hint("is the node running? `littoral serve` prints the address of its HTTP server")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json");
    if let Some(token) = std::env::var_os(TOKEN_VARIABLE) {
        let token = token.to_str().with_context(|| format!("{TOKEN_VARIABLE} holds no token"))?;
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    drop(sender);
    // The answer is complete; how the connection ends after it does not matter.
    driver.abort();
    let json = serde_json::from_slice(&bytes)
        .with_context(|| format!("{authority} answered {status} with something that is not JSON"))
        .or_hint("is this the HTTP address of a littoral node?")?;
    Ok((status, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_from_urls() {
        let authority = |url: &str| {
            Target { url: Some(url.to_owned()), config: None }
                .authority()
                .map_err(|e| e.to_string())
        };
        assert_eq!(authority("http://127.0.0.1:80/"), Ok("127.0.0.1:80".to_owned()));
        assert_eq!(authority("http://[::1]:80"), Ok("[::1]:80".to_owned()));
        for url in ["127.0.0.1:80", "https://a:1", "http://", "http://a:1/b"] {
            assert!(authority(url).is_err(), "{url}");
        }
    }
}
