//! `littoral join`: runs a node that the cluster does not know yet, with a peer to begin with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use littoral::{Genesis, Identity, Incarnation, NodeId};
use tracing::info;

use super::{
    OrHint as _, create_private_dir,
    init::{Node, configuration, given_address, quoted, random},
    serve::{Serve, dial},
};
use crate::{
    authority::{BOOKMARK_KEY, REVOKED, Token, Unsigned, ask_to_be_signed, new_key},
    config::{Config, Dial, is_loopback},
    pki,
};

/// The variable of the environment that may hold the token.
const TOKEN_VARIABLE: &str = "LITTORAL_JOIN_TOKEN";

/// Make a node part of a running cluster, and run it until SIGINT or SIGTERM.
///
/// Either with a directory that `littoral ca issue` made, and any node of the cluster as its peer: if the
/// configuration names no node to dial yet, the peer is written there, so that `littoral serve` dials it
/// from then on.
///
/// Or with a token that `littoral ca invite` made, which is all that a machine needs: the directory is
/// made, with a key that does not leave it, and the authority signs a certificate. Joining that was
/// interrupted is gone on with by the same command, and a node that has joined is only run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral join shop/edge2 edge1=10.0.0.2:4400\n  \
    LITTORAL_JOIN_TOKEN=littoral-join.eyJ2... littoral join edge3 --address 10.0.0.3:4400,8080")]
pub(super) struct Join {
    /// The node's directory.
    directory: PathBuf,
    /// Any node of the cluster.
    #[arg(value_name = "NODE=HOST:PORT")]
    peer: Option<String>,
    /// The token; other users of the machine can see it, those in the variable LITTORAL_JOIN_TOKEN they
    /// cannot.
    #[arg(long, conflicts_with = "peer")]
    token: Option<String>,
    /// Where links and clients are accepted, with a token; by default at ports the system chooses, clients on
    /// loopback.
    #[arg(long, value_name = "HOST:PORT[,HTTPPORT]")]
    address: Option<String>,
    /// Print the addresses as JSON.
    #[arg(long)]
    json: bool,
}

impl Join {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = self.directory.join("littoral.toml");
        let from_environment = || std::env::var(TOKEN_VARIABLE).ok();
        let token = self.token.clone().or_else(|| match self.peer {
            None => from_environment(),
            Some(_) => None,
        });
        let Some(token) = token else {
            let Some(peer) = &self.peer else {
                return Err(anyhow!("neither a peer nor a token is given")).or_hint(
                    "littoral join DIR NODE=HOST:PORT, or littoral join DIR --token TOKEN",
                );
            };
            let peer: Dial = dial(peer)?;
            let config = member_to_be(&path)?;
            if !config.links.dial.contains(&peer) {
                remember(&path, &peer)?;
            }
            let serve = Serve { config: path, dial: Vec::new(), json: self.json };
            return serve.serve(config, vec![peer]).await;
        };
        let token = Token::parse(&token)?;
        if path.exists() {
            info!("this node has joined before; the token is not used");
        } else {
            self.make(&token, &path).await?;
        }
        let config = member_to_be(&path)?;
        if config.identity.node.as_str() != token.node {
            bail!("{} is of {}, the token of {}", path.display(), config.identity.node, token.node);
        }
        let serve = Serve { config: path, dial: Vec::new(), json: self.json };
        serve.serve(config, Vec::new()).await
    }

    /// Makes the directory. The configuration comes last, so a directory with one is whole.
    async fn make(&self, token: &Token, path: &Path) -> anyhow::Result<()> {
        let home = &self.directory;
        let name = NodeId::new(&token.node)?;
        let given = given_address(&name, self.address.as_deref())?;
        let is_new = !home.exists();
        if is_new {
            create_private_dir(home)?;
        }
        let key_file = home.join("node.key");
        let mut has_new_key = false;
        let key = match fs::read_to_string(&key_file) {
            Ok(key) => key,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = new_key()?;
                pki::write_private(&key_file, &key)
                    .with_context(|| format!("cannot write {}", key_file.display()))?;
                has_new_key = true;
                key
            }
            Err(error) => bail!("cannot read {}: {error}", key_file.display()),
        };
        let signed = match ask_to_be_signed(token, &key).await {
            Ok(signed) => signed,
            // The same command goes on with this key.
            Err(Unsigned::Perhaps(error)) => return Err(error),
            Err(Unsigned::Never(error)) => {
                if has_new_key {
                    fs::remove_file(&key_file)
                        .with_context(|| format!("cannot remove {}", key_file.display()))?;
                }
                if is_new {
                    fs::remove_dir(home)
                        .with_context(|| format!("cannot remove {}", home.display()))?;
                }
                return Err(error);
            }
        };
        let dials: Vec<Dial> =
            signed.dial.iter().map(|text| dial(text)).collect::<Result<_, _>>()?;
        let identity =
            Identity { cluster: token.cluster()?, node: name, incarnation: Incarnation(random()?) };
        let is_far = given.is_none() && dials.iter().any(|dial| !is_local(&dial.address));
        let mut node = Node::place(identity, given, (0, 0));
        if is_far {
            node.reach_other_machines();
        }
        let write = |name: &str, text: &str| {
            let path = home.join(name);
            pki::replace_private(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))
        };
        write("ca.pem", &signed.ca)?;
        write("node.pem", &signed.certificate)?;
        write(REVOKED, &signed.revoked)?;
        if let Some(key) = &signed.bookmark_key {
            write(BOOKMARK_KEY, key)?;
        }
        let has_key = signed.bookmark_key.is_some();
        let text = configuration(&node, has_key, signed.read_only, &dials);
        // What is written here, serve must be able to read.
        Config::parse(&text, path, home)?;
        write("littoral.toml", &text)?;
        info!(node = token.node, "the authority has signed this node's certificate");
        Ok(())
    }
}

fn member_to_be(path: &Path) -> anyhow::Result<Config> {
    let config = Config::load(path)?;
    if matches!(config.genesis, Some(Genesis { .. })) {
        bail!("{}: the origin of a cluster does not join one", path.display());
    }
    Ok(config)
}

/// Whether `HOST:PORT` is on this machine.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

/// Writes the first node to dial into a configuration that was issued without one.
fn remember(path: &Path, peer: &Dial) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let dial =
        format!("\ndial = [{{ node = \"{}\", address = {} }}]\n", peer.node, quoted(&peer.address));
    let changed = text.replacen("\ndial = []\n", &dial, 1);
    if changed == text {
        // Somebody has written the file in another way, and keeps it so.
        tracing::warn!(
            peer = %peer.node,
            "name it under [links] in {}, or `littoral serve` will not dial it", path.display()
        );
        return Ok(());
    }
    let new = path.with_extension("toml.new");
    fs::write(&new, &changed).with_context(|| format!("cannot write {}", new.display()))?;
    // What is written here, serve must be able to read.
    Config::load(&new)?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_is_written_down_and_a_configuration_of_ones_own_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("littoral.toml");
        let text = "[node]\nname = \"edge2\"\ncluster = \"000102030405060708090a0b0c0d0e0f\"\n\
                    incarnation = \"ffffffffffffffffffffffffffffffff\"\n\n\
                    [links]\nlisten = \"127.0.0.1:0\"\ndial = []\n\n\
                    [tls]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n";
        fs::write(&path, text).unwrap();
        let peer = dial("edge1=127.0.0.1:4402").unwrap();
        remember(&path, &peer).unwrap();
        assert_eq!(Config::load(&path).unwrap().links.dial, std::slice::from_ref(&peer));
        let own = text.replace("dial = []", "dial=[ ] # to come");
        fs::write(&path, &own).unwrap();
        remember(&path, &peer).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
    }
}
