//! The door to tonic: requests are parsed here, once, into types that cannot hold an invalid value. Nothing is decided
//! here.
//!
//! Invariant: a [`Caller`] comes from a token that is good on this very connection and from a key that is good now.
//! Called by `Server::start`.

mod account;
mod drive;
pub mod listen;
mod object;
mod serve;
mod status;

use sealdrive_proto::transcript::{Role, TOKEN_METADATA};
use tonic::{Request, Status};

use self::listen::Peer;
use self::status::not_found;
use crate::clock;
use crate::core::Core;
use crate::sessions::Caller;

pub use self::serve::{ServeError, serve};

/// The connection a request came on.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Status::internal("connection without a peer"))
}

/// Who asks. Revocation counts at once: the key must still be good.
fn caller<T>(core: &Core, request: &Request<T>) -> Result<Caller, Status> {
    let refused = || Status::unauthenticated("log in first");
    let token = request
        .metadata()
        .get_bin(TOKEN_METADATA)
        .ok_or_else(refused)?;
    let token = token.to_bytes().map_err(|_| refused())?;
    let binding = peer(request)?.binding;
    let caller = core
        .sessions
        .caller(&token, &binding, clock::steady_ms())
        .ok_or_else(refused)?;
    core.book
        .login_key(&caller.account, caller.role, &caller.device)
        .ok_or_else(refused)?;
    Ok(caller)
}

/// Who asks, if it is a device.
fn device<T>(core: &Core, request: &Request<T>) -> Result<Caller, Status> {
    let caller = caller(core, request)?;
    if caller.role == Role::Device {
        Ok(caller)
    } else {
        Err(not_found())
    }
}
