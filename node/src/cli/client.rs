//! A small HTTP client for the commands that talk to a running node, with TLS where the node has it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Hinted, OrHint as _};
use crate::{
    config::Config,
    pinned::{Expected, Pinned},
};

/// Longer than any statement may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The variable of the environment that holds the token, for nodes that want one.
const TOKEN_VARIABLE: &str = "LITTORAL_TOKEN";

/// Where systems keep the certificates of the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Which node to talk to.
#[derive(Debug, Args)]
pub(super) struct Target {
    #[command(flatten)]
    node: Which,
    /// A PEM file with the authorities to trust for https://; by default those that the system trusts.
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The address for clients that `littoral serve` printed. A token for it is taken from the variable
    /// LITTORAL_TOKEN.
    #[arg(long, value_name = "http[s]://HOST:PORT")]
    url: Option<String>,
    /// In place of --url: the configuration of a node that runs on this machine.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A server, and how it is spoken to.
struct Server {
    /// `HOST:PORT`.
    authority: String,
    tls: Option<(ServerName<'static>, ClientConfig)>,
}

impl Target {
    fn server(&self) -> anyhow::Result<Server> {
        if let Some(url) = &self.node.url {
            return self.server_at(url);
        }
        let path = self.node.config.as_ref().context("one of --url and --config is needed")?;
        let config = Config::load(path)?;
        let http = config.http.ok_or_else(|| anyhow!("this node serves no HTTP"))?;
        if http.listen.port() == 0 {
            return Err(anyhow!("the configuration lets the system choose the port"))
                .or_hint("give the address that `littoral serve` printed as --url");
        }
        let address = reachable(http.listen);
        let tls = match &http.tls {
            None => None,
            Some(files) => {
                // The name in it is that by which others know the server; this is the very certificate.
                let own = certificates(&files.certificate)?;
                let own = own.into_iter().next().context("there is no certificate")?;
                let verifier = Arc::new(Pinned::new(Expected::Certificate(own)));
                let config = client().dangerous().with_custom_certificate_verifier(verifier);
                Some((ServerName::from(address.ip()), config.with_no_client_auth()))
            }
        };
        Ok(Server { authority: address.to_string(), tls })
    }

    fn server_at(&self, url: &str) -> anyhow::Result<Server> {
        let expected = || anyhow!("--url {url}: expected http://HOST:PORT or https://HOST:PORT");
        let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.contains('/') {
            return Err(expected());
        }
        match scheme {
            "http" if self.ca.is_some() => bail!("--ca is for https://"),
            "http" => Ok(Server { authority: rest.to_owned(), tls: None }),
            "https" => {
                let has_port =
                    rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                let authority = if has_port { rest.to_owned() } else { format!("{rest}:443") };
                let host = authority.rsplit_once(':').map_or(rest, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(|_| expected())?;
                let config = client().with_root_certificates(self.authorities()?);
                let tls = Some((name, config.with_no_client_auth()));
                Ok(Server { authority, tls })
            }
            _ => Err(expected()),
        }
    }

    /// Whom the certificate of an https server is to be of.
    fn authorities(&self) -> anyhow::Result<RootCertStore> {
        let system = || {
            let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
            named.or_else(|| SYSTEM_AUTHORITIES.map(PathBuf::from).into_iter().find(|p| p.exists()))
        };
        let path = match &self.ca {
            Some(path) => path.clone(),
            None => system()
                .ok_or_else(|| anyhow!("the authorities that this system trusts were not found"))
                .or_hint("name the certificate of the server's authority with --ca FILE")?,
        };
        let mut roots = RootCertStore::empty();
        // A bundle of the system may hold some that cannot be used.
        let (used, _) = roots.add_parsable_certificates(certificates(&path)?);
        if used == 0 {
            bail!("{} holds no certificate that can be used", path.display());
        }
        Ok(roots)
    }

    /// What the node says of itself.
    pub(super) async fn status(&self) -> anyhow::Result<Value> {
        self.ask_for(Method::GET, "/status").await
    }

    /// Asks the node for something that it grants or refuses.
    pub(super) async fn ask_for(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        let (code, answer) = self.ask(method, path, None).await?;
        if !code.is_success() {
            return Err(refused(code, &answer));
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
        let server = self.server()?;
        let authority = server.authority.clone();
        let exchange = server.exchange(method, path, body);
        match timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!("{authority} did not answer within {} s", TIMEOUT.as_secs()),
        }
    }
}

/// What a node has said in place of an answer.
pub(super) fn refused(code: StatusCode, answer: &Value) -> anyhow::Error {
    let message = answer["message"].as_str().unwrap_or_default();
    let error = anyhow!("the node answered {code}: {message}");
    let hint = match answer["code"].as_str() {
        Some("LITTORAL_UNAUTHORIZED") => format!(
            "put a token into the environment variable {TOKEN_VARIABLE}; `littoral token issue` makes one"
        ),
        Some("LITTORAL_NOT_GRANTED") => {
            "`littoral token issue --operate` makes a token that gives it".to_owned()
        }
        _ => return error,
    };
    anyhow::Error::new(Hinted { error, hint })
}

fn client() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has what both versions need")
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", path.display()))
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

impl Server {
    async fn exchange(
        self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let authority = &self.authority;
        let stream = TcpStream::connect(authority)
            .await
            .with_context(|| format!("cannot connect to {authority}"))
            .or_hint(
                "is the node running? `littoral serve` prints the address of its HTTP server",
            )?;
        match self.tls {
            None => exchange(stream, authority, method, path, body).await.map_err(|error| {
                if error.downcast_ref::<hyper::Error>().is_none() {
                    return error;
                }
                let hint = format!("if it has [http.tls], say https://{authority}");
                let error = error.context(format!("{authority} does not answer in plain HTTP"));
                anyhow::Error::new(Hinted { error, hint })
            }),
            Some((name, config)) => {
                let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
                let stream = connecting.await.map_err(|error| {
                    let hint = if is_no_tls(&error) {
                        format!("the port speaks plain HTTP: say http://{authority}")
                    } else if error.to_string().contains("CaUsedAsEndEntity") {
                        "the server's certificate is one for an authority (CA:TRUE): give the server one \
                         with CA:FALSE, signed by itself or by an authority"
                            .to_owned()
                    } else {
                        "does the node have [http.tls], and is --ca the authority of its certificate?"
                            .to_owned()
                    };
                    let error = anyhow::Error::new(error)
                        .context(format!("no TLS connection to {authority}"));
                    anyhow::Error::new(Hinted { error, hint })
                })?;
                exchange(stream, authority, method, path, body).await
            }
        }
    }
}

/// Whether what the other end said is not TLS.
fn is_no_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(StatusCode, Value)> {
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
        let server = |url: &str| {
            let node = Which { url: Some(url.to_owned()), config: None };
            // Any certificates will do.
            let file = tempfile::NamedTempFile::new().unwrap();
            let authority = crate::pki::Authority::create(littoral::ClusterId(1)).unwrap();
            std::fs::write(file.path(), authority.certificate()).unwrap();
            let ca = url.starts_with("https").then(|| file.path().to_owned());
            let server = Target { node, ca }.server().ok()?;
            let tls = server.tls.map(|(name, _)| name.to_str().into_owned());
            Some((server.authority, tls))
        };
        let plain = |authority: &str| Some((authority.to_owned(), None));
        let tls = |authority: &str, name: &str| Some((authority.to_owned(), Some(name.to_owned())));
        assert_eq!(server("http://127.0.0.1:80/"), plain("127.0.0.1:80"));
        assert_eq!(server("http://[::1]:80"), plain("[::1]:80"));
        assert_eq!(server("https://a.example:1/"), tls("a.example:1", "a.example"));
        assert_eq!(server("https://a.example"), tls("a.example:443", "a.example"));
        assert_eq!(server("https://[::1]:80"), tls("[::1]:80", "::1"));
        for url in ["127.0.0.1:80", "ftp://a:1", "http://", "http://a:1/b", "https://"] {
            assert_eq!(server(url), None, "{url}");
        }
    }
}
