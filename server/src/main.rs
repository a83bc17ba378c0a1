//! The `sealdrive-server` command: serve, invite, rebuild-index, status.
//!
//! Invariant: prints results on standard output and everything else on standard error; exit codes are those of the
//! client where they apply (0 ok, 1 error, 2 usage). Called by operators.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use sealdrive_proto::connect::is_loopback;
use sealdrive_server::store::StoreOptions;
use sealdrive_server::{Config, Server, notify};

/// Keeps sealed objects for sealdrive clients. It holds no key and can read none of them.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  sealdrive-server serve --data /srv/sealdrive --listen 0.0.0.0:7420
  sealdrive-server invite --data /srv/sealdrive --address backup.example.org:7420
The second prints a one-time connect string; hand it to the person who runs `sealdrive init`."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; then finish what is under way and stop.
    Serve {
        /// Data directory; made if absent.
        #[arg(long, env = "SEALDRIVE_SERVER_DATA")]
        data: PathBuf,
        /// Address and port to listen on.
        #[arg(long, default_value = "127.0.0.1:7420")]
        listen: SocketAddr,
        /// No TLS. Refused unless the address is loopback; for tests and for a TLS tunnel on the same machine.
        #[arg(long)]
        plaintext_loopback: bool,
        /// Most bytes of objects an account may store; without it, as much as the disk holds.
        #[arg(long, value_name = "BYTES")]
        account_quota: Option<u64>,
    },
    /// Print a one-time connect string for a new account. The server may be running.
    Invite {
        /// Data directory of the server.
        #[arg(long, env = "SEALDRIVE_SERVER_DATA")]
        data: PathBuf,
        /// `host:port` under which clients reach the server.
        #[arg(long)]
        address: String,
        /// For a server started with --plaintext-loopback.
        #[arg(long)]
        plaintext_loopback: bool,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make the index anew from the packs alone. The server must not be running.
    RebuildIndex {
        /// Data directory of the server.
        #[arg(long, env = "SEALDRIVE_SERVER_DATA")]
        data: PathBuf,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// How much is stored. The server must not be running.
    Status {
        /// Data directory of the server.
        #[arg(long, env = "SEALDRIVE_SERVER_DATA")]
        data: PathBuf,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SEALDRIVE_LOG")
        .unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match arguments.command {
        Command::Serve {
            data,
            listen,
            plaintext_loopback,
            account_quota,
        } => {
            let config = Config {
                data,
                listen,
                plaintext_loopback,
            };
            serve(
                config,
                StoreOptions {
                    quota: account_quota,
                    ..StoreOptions::default()
                },
            )
        }
        Command::Invite {
            data,
            address,
            plaintext_loopback,
            json,
        } => {
            if plaintext_loopback && !is_loopback(&address) {
                bail!("--plaintext-loopback needs a loopback address, not {address}");
            }
            let connect = sealdrive_server::invite(&data, &address, plaintext_loopback)
                .with_context(|| format!("no invitation in {}", data.display()))?;
            if json {
                print_json(&serde_json::json!({ "connect": connect.to_string() }));
            } else {
                print_line(&connect.to_string());
            }
            Ok(())
        }
        Command::RebuildIndex { data, json } => {
            let counts = sealdrive_server::rebuild_index(&data)
                .with_context(|| format!("index of {} not rebuilt", data.display()))?;
            report(&counts, json)
        }
        Command::Status { data, json } => {
            let counts =
                sealdrive_server::status(&data).with_context(|| format!("{}", data.display()))?;
            report(&counts, json)
        }
    }
}

fn serve(config: Config, options: StoreOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("no runtime")?;
    runtime.block_on(async {
        let running = Server::start_with(config, options).await?;
        print_line(&format!("listening on {}", running.address()));
        notify::ready(&running);
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            error = running.failed() => bail!("stopped: {error}"),
            () = notify::feed(&running) => {}
        }
        notify::stopping();
        running.shutdown().await.context("shutdown")
    })
}

fn report(counts: &sealdrive_server::Counts, json: bool) -> anyhow::Result<()> {
    if json {
        print_json(&serde_json::to_value(counts)?);
    } else {
        print_line(&counts.to_string());
    }
    Ok(())
}

fn print_json(value: &serde_json::Value) {
    print_line(&value.to_string());
}

/// Prints; a closed pipe is no error.
fn print_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
