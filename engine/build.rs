//! Stops the build with an explanation when SQLite was compiled without the preupdate hook.

use std::{env, fs, path::Path};

/// The symbol that only a SQLite built with `SQLITE_ENABLE_PREUPDATE_HOOK` defines.
const SYMBOL: &[u8] = b"sqlite3_preupdate_hook";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBSQLITE3_FLAGS");
    let Ok(dir) = env::var("DEP_SQLITE3_LIB_DIR") else {
        println!(
            "cargo::warning=littoral could not find the bundled SQLite to check it for the preupdate hook"
        );
        return;
    };
    let archive = Path::new(&dir).join("libsqlite3.a");
    let has_hook = match fs::read(&archive) {
        Ok(bytes) => bytes.windows(SYMBOL.len()).any(|window| window == SYMBOL),
        Err(error) => {
            println!("cargo::warning=littoral could not read {}: {error}", archive.display());
            return;
        }
    };
    if !has_hook {
        println!("cargo::error=littoral needs SQLite compiled with SQLITE_ENABLE_PREUPDATE_HOOK.");
        println!("cargo::error=Add these two lines to .cargo/config.toml of your workspace:");
        println!("cargo::error=    [env]");
        println!("cargo::error=    LIBSQLITE3_FLAGS = \"-DSQLITE_ENABLE_PREUPDATE_HOOK\"");
    }
}
