//! One connection to the server and the login on it; and the keeper that replaces a lost one.
//!
//! Invariant: a token is used only on the connection it was obtained on (it is bound to that connection's TLS
//! exporter), lives in memory only and is renewed before it ends; at most one connection is being made at a time.
//! Called by `grpc` only.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use sealdrive_proto::limits::{CONNECTION_WINDOW, STREAM_WINDOW};
use sealdrive_proto::transcript::{Binding, TOKEN_METADATA};
use tokio::sync::Mutex;
use tonic::metadata::{Binary, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::login::{self, Identity};
use super::{Server, status, tls};
use crate::clock;
use crate::limits::CALL_DEADLINE;
use crate::remote::RemoteError;

/// How often a quiet connection is probed, so that a dead one is noticed before it is needed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a failure to connect is answered from memory: many callers, one attempt.
const FAILURE_LIFE: Duration = Duration::from_millis(300);
/// Share of a token's life after which it is renewed: 3/4 leaves minutes for a slow server.
const RENEW_AFTER: f64 = 0.75;

/// A connection.
pub(super) struct Session {
    pub(super) channel: Channel,
    binding: Binding,
    fingerprint: Option<[u8; 32]>,
    token: Mutex<Option<Token>>,
}

struct Token {
    value: MetadataValue<Binary>,
    renew_at: Instant,
}

/// A logged-in moment of a session: what one call needs.
#[derive(Clone)]
pub(super) struct Ticket {
    pub(super) channel: Channel,
    token: MetadataValue<Binary>,
}

impl Ticket {
    /// A request with the token on it.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert_bin(TOKEN_METADATA, self.token.clone());
        request
    }
}

impl Session {
    async fn open(server: &Server) -> Result<Self, RemoteError> {
        let secured = tls::connect(server).await?;
        let (binding, fingerprint) = (secured.binding, secured.fingerprint);
        // The endpoint gets this one stream; when it breaks, the session is replaced as a whole, because a new
        // connection has another exporter and needs another login.
        let mut stream = Some(TokioIo::new(secured.stream));
        let connector = service_fn(move |_| {
            let stream = stream.take().ok_or(std::io::ErrorKind::ConnectionAborted);
            std::future::ready(stream.map_err(std::io::Error::from))
        });
        let channel = Endpoint::from_static("http://sealdrive")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                RemoteError::Unreachable(format!("{}: HTTP/2: {error}", server.addr))
            })?;
        Ok(Self {
            channel,
            binding,
            fingerprint,
            token: Mutex::new(None),
        })
    }

    async fn ticket(&self, server: &Server, identity: &Identity) -> Result<Ticket, RemoteError> {
        let mut held = self.token.lock().await;
        let value = match &*held {
            Some(token) if clock::now() < token.renew_at => token.value.clone(),
            _ => {
                let granted =
                    login::login(self.channel.clone(), server, identity, self.binding).await?;
                let value = MetadataValue::from_bytes(&granted.token);
                let renew_at = clock::now() + granted.lifetime.mul_f64(RENEW_AFTER);
                *held = Some(Token {
                    value: value.clone(),
                    renew_at,
                });
                value
            }
        };
        Ok(Ticket {
            channel: self.channel.clone(),
            token: value,
        })
    }

    async fn forget_token(&self) {
        *self.token.lock().await = None;
    }
}

/// Keeps one logged-in connection to one server for one identity.
pub(super) struct Line {
    pub(super) server: Server,
    pub(super) identity: Arc<Identity>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    session: Option<Arc<Session>>,
    failed: Option<(Instant, RemoteError)>,
}

impl Line {
    pub(super) fn new(server: Server, identity: impl Into<Arc<Identity>>) -> Self {
        Self {
            server,
            identity: identity.into(),
            held: Mutex::default(),
        }
    }

    /// The connection held, or a new one. True if it is new.
    async fn session(&self) -> Result<(Arc<Session>, bool), RemoteError> {
        let mut held = self.held.lock().await;
        if let Some(session) = &held.session {
            return Ok((Arc::clone(session), false));
        }
        if let Some((at, error)) = &held.failed
            && at.elapsed() < FAILURE_LIFE
        {
            return Err(error.clone());
        }
        match Session::open(&self.server).await {
            Ok(session) => {
                let session = Arc::new(session);
                *held = Held {
                    session: Some(Arc::clone(&session)),
                    failed: None,
                };
                Ok((session, true))
            }
            Err(error) => {
                held.failed = Some((clock::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Lets go of a connection that failed, unless another took its place already.
    async fn drop_session(&self, session: &Arc<Session>) {
        let mut held = self.held.lock().await;
        if held
            .session
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, session))
        {
            held.session = None;
        }
    }

    /// Runs one call without a login (registration), within `CALL_DEADLINE`.
    pub(super) async fn anonymous<T, F, Fut>(&self, call: F) -> Result<T, RemoteError>
    where
        F: FnOnce(Channel) -> Fut,
        Fut: Future<Output = Result<T, tonic::Status>>,
    {
        let (session, _) = self.session().await?;
        let answer = within(call(session.channel.clone())).await;
        if matches!(
            answer,
            Err(RemoteError::Unreachable(_) | RemoteError::WrongServer(_))
        ) {
            self.drop_session(&session).await;
        }
        answer
    }

    /// Checks that the server holds its identity key, without logging in. Yields its certificate's fingerprint.
    pub(super) async fn verify_server(&self) -> Result<Option<[u8; 32]>, RemoteError> {
        let (session, _) = self.session().await?;
        let channel = session.channel.clone();
        login::hello(channel, &self.server, &self.identity, session.binding).await?;
        Ok(session.fingerprint)
    }

    /// Runs one call within `CALL_DEADLINE`. A token that ran out and a connection that was lost while idle are
    /// replaced once, so `call` must be one that may be sent twice.
    pub(super) async fn call<T, F, Fut>(&self, call: F) -> Result<T, RemoteError>
    where
        F: Fn(Ticket) -> Fut,
        Fut: Future<Output = Result<T, tonic::Status>>,
    {
        let mut again = true;
        loop {
            let (session, fresh) = self.session().await?;
            let attempt = async {
                let ticket = session.ticket(&self.server, &self.identity).await?;
                within(call(ticket)).await
            };
            let retry = again && !fresh;
            again = false;
            match attempt.await {
                Err(RemoteError::Unauthenticated(_)) if retry => session.forget_token().await,
                Err(error @ (RemoteError::Unreachable(_) | RemoteError::WrongServer(_))) => {
                    self.drop_session(&session).await;
                    if !retry {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

/// One answer within `CALL_DEADLINE`.
pub(super) async fn within<T>(
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, RemoteError> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(answer) => answer.map_err(|error| status::translate(&error)),
        Err(_) => {
            let seconds = CALL_DEADLINE.as_secs();
            Err(RemoteError::Unreachable(format!(
                "no answer in {seconds} s"
            )))
        }
    }
}
