//! A web service with its data beside it: axum answers, a littoral node in the same process keeps the
//! rows and replicates them.
//!
//! ```console
//! $ littoral init shop --schema schema.sql --table stock:writers=any,n=counter --nodes origin,edge1
//! $ cargo run --release -p littoral-node --example axum -- shop/origin/littoral.toml 127.0.0.1:8080
//! $ curl -X POST 'http://127.0.0.1:8080/stock/tea?add=5'
//! {"item":"tea","n":5}
//! $ curl http://127.0.0.1:8080/stock/tea
//! {"item":"tea","n":5}
//! ```
//!
//! where `schema.sql` is `CREATE TABLE stock(item TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL DEFAULT 0)`.
#![allow(clippy::print_stdout, reason = "an example says where it listens")]

use std::{env, error::Error, path::Path};

use axum::{
    Json, Router,
    extract::{self, Query, State},
    http::StatusCode,
    routing::get,
};
use littoral_node::{Config, Node, NodeHandle};
use rusqlite::OptionalExtension as _;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[derive(Serialize)]
struct Stock {
    item: String,
    n: i64,
}

#[derive(Deserialize)]
struct Change {
    add: i64,
}

type Answer = Result<Json<Stock>, (StatusCode, String)>;

/// One transaction; it runs on the node's own thread, and nothing of the runtime waits for a disk.
async fn add(
    State(handle): State<NodeHandle>,
    extract::Path(item): extract::Path<String>,
    Query(change): Query<Change>,
) -> Answer {
    let written = handle
        .write(move |tx| {
            let n = tx.query_row(
                "INSERT INTO stock VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET n = n + excluded.n RETURNING n",
                (&item, change.add),
                |row| row.get(0),
            )?;
            Ok(Stock { item: item.clone(), n })
        })
        .await;
    match written {
        Ok((stock, _)) => Ok(Json(stock)),
        Err(error) if error.is_retryable() => {
            Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
        }
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// A read has a connection of its own, on a thread that may block.
async fn show(
    State(handle): State<NodeHandle>,
    extract::Path(item): extract::Path<String>,
) -> Answer {
    let read = handle.read(move |reader| {
        reader
            .connection()
            .query_row("SELECT item, n FROM stock WHERE item = ?", [&item], |row| {
                Ok(Stock { item: row.get(0)?, n: row.get(1)? })
            })
            .optional()
    });
    let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, why);
    match read.await.map_err(|error| failed(error.to_string()))? {
        Ok(Some(stock)) => Ok(Json(stock)),
        Ok(None) => Err((StatusCode::NOT_FOUND, "there is no such item".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(config), Some(listen)) = (arguments.next(), arguments.next()) else {
        return Err("usage: axum CONFIG IP:PORT".into());
    };
    let node = Node::start(Config::load(Path::new(&config))?).await?;
    let service =
        Router::new().route("/stock/{item}", get(show).post(add)).with_state(node.handle().clone());
    let listener = TcpListener::bind(listen).await?;
    println!("http://{}", listener.local_addr()?);
    let ended = node.handle().clone();
    let stop = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            // The replica has failed, and the log says why: this process is of no use any more.
            () = ended.ended() => {}
        }
    };
    axum::serve(listener, service).with_graceful_shutdown(stop).await?;
    node.stop().await?;
    Ok(())
}
